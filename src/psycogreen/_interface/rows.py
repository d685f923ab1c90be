"""The rows of COPY TO, in Python. Its twin in C is _rows.c."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from time import monotonic

from psycogreen._wait.libpq import libpq

# The values of connection.poll() for the same states.
END = 0
READ = 1
YIELD = 2


def write_rows(
    pgconn: int,
    write: Callable[[str | bytes], object] | None,
    codec: str | None,
    seconds: float,
) -> int:
    """Call *write* with each row that has arrived, for *seconds* at most.

    *pgconn* is the address of a connection that is in COPY TO. With a *codec* the rows
    are decoded; with ``None`` for *write* they are dropped.

    Return `END` after the last row or if the connection is lost, `READ` if the next row
    has not arrived, and `YIELD` if the time is up. Raise *write*'s exceptions, or
    `UnicodeDecodeError`.
    """
    library = libpq()
    end = monotonic() + seconds
    row = ctypes.c_void_p()
    read = False
    while (length := library.PQgetCopyData(pgconn, row, 1)) >= 0:
        if length == 0:
            # Try to read more once before waiting: a wait costs more.
            if read:
                return READ
            if not library.PQconsumeInput(pgconn):
                return END
            read = True
            continue
        read = False
        data = ctypes.string_at(row, length)
        library.PQfreemem(row)
        if write:
            write(data.decode(codec) if codec else data)
        if monotonic() >= end:
            return YIELD
    return END
