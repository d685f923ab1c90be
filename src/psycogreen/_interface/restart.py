"""Restart a connection attempt inside psycopg2's connection object, with other hosts.

libpq has no function to make a connection attempt leave a host. So a new attempt
replaces the old one in psycopg2's object. The application's connection factory is called
only once.
"""

from __future__ import annotations

import ctypes

import psycopg2
from psycopg2.extensions import connection

from psycogreen._wait.libpq import CONNECTION_BAD, pgconn, waiting_libpq


def restart(conn: connection, dsn: str) -> None:
    """Restart *conn*, which is connecting, with *dsn*.

    The caller must next wait until its new socket can be written. Raise
    `psycopg2.OperationalError` if every host fails immediately.
    """
    former = pgconn(conn)
    place = _place(conn, former)
    library = waiting_libpq()
    begun = library.PQconnectStart(dsn.encode(errors="surrogateescape"))
    if library.PQstatus(begun) == CONNECTION_BAD:
        error = library.PQerrorMessage(begun).decode(errors="replace")
        library.PQfinish(begun)
        raise psycopg2.OperationalError(error)
    # psycopg2 does the same after it has begun to connect.
    processor = library.PQsetNoticeProcessor(former, None, None)
    library.PQsetNoticeProcessor(begun, processor, id(conn))
    library.PQsetnonblocking(begun, 1)
    place.value = begun
    library.PQfinish(former)


def _place(conn: connection, address: int) -> ctypes.c_void_p:
    """Return the pointer to the ``PGconn`` in the structure of *conn*.

    psycopg2 does not expose its offset. But *address*, the value of the pointer, is known,
    and no other field has that value.
    """
    size = ctypes.sizeof(ctypes.c_void_p)
    places = range(id(conn), id(conn) + connection.__basicsize__, size)
    pointers = [ctypes.c_void_p.from_address(place) for place in places]
    [found] = [pointer for pointer in pointers if pointer.value == address]
    return found
