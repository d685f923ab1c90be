"""COPY, cooperatively: the data is transferred during psycopg2's own query.

In green mode psycopg2 sends a COPY statement like any other, waits for its first result,
and then refuses to go on. So this module makes the wait last longer: it polls in place
of the connection, notices that libpq is in COPY mode, transfers the data, and polls the
connection for the final result. psycopg2 sees only that result, and handles it like any
other, errors included. As in every query, psycopg2 holds the connection's lock meanwhile,
and a timeout or a kill interrupts the wait.
"""

from __future__ import annotations

import io
import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Any

import psycopg2
from psycopg2.extensions import (
    POLL_OK,
    POLL_READ,
    POLL_WRITE,
    STATUS_PREPARED,
    TRANSACTION_STATUS_ACTIVE,
    QuotedString,
    connection,
    cursor,
    encodings,
    get_wait_callback,
    quote_ident,
)

from psycogreen._interface import polling
from psycogreen._interface.members import Member
from psycogreen._interface.replacing import method
from psycogreen._wait import twin
from psycogreen._wait.libpq import COPY_IN, COPY_OUT, libpq
from psycogreen._wait.native import original

if twin.compiled:
    try:
        from psycogreen._interface._rows import write_rows
    except ImportError:
        from psycogreen._interface.rows import write_rows
else:
    from psycogreen._interface.rows import write_rows

SLICE = 0.005
"""Seconds after which other greenlets run, however fast the data arrives."""

PIECE = 128 * 1024
"""The largest piece, in bytes, that libpq gets: it may loop on larger ones, see
https://github.com/psycopg/psycopg/issues/255."""

UNSENT = 64 * 1024
"""Bytes after which libpq must send: otherwise it would buffer all the data."""

DRAIN = 1.0
"""Seconds for which rows are read and dropped after the file's write() has failed."""

_DEFAULT_SIZE = 8192

# EPOLLIN | EPOLLOUT, which gevent removes from the select module.
_READ_OR_WRITE = 1 | 4

_HEAP_TYPE = 1 << 9

# psycopg2's own method, not a replacement.
_execute = cursor.execute

_error_cursor = Member(psycopg2.Error, "cursor")
_query = Member(cursor, "query")
_rowcount = Member(cursor, "rowcount")
_statusmessage = Member(cursor, "statusmessage")

Refuse = Callable[..., None]
"""psycopg2's own method: in green mode it always raises, for other reasons first."""

_Arguments = tuple[Any, ...]
"""A file, the size to read at once, and the parts of the statement."""


class _Copy:
    """A COPY statement and its file, while `_execute` waits for it."""

    def __init__(self, conn: connection, file: Any, size: int) -> None:  # noqa: ANN401
        self._conn = conn
        self._libpq = libpq()
        self._pgconn = conn.pgconn_ptr or 0
        self._codec: str = encodings[conn.encoding]
        self._file = file
        self._size = size
        self._unsent = _Unsent(conn)
        self._step: Callable[[], int] | None = None
        """Transfers some data; returns a value of connection.poll()."""
        self._reason: str | None = None
        """Why the file's data ends early, for the server."""
        self.begun = False
        """Whether the statement was a COPY from or to this client."""
        self.error: Exception | None = None
        """The file's exception, which psycopg2 would raise."""

    def poll(self) -> int:
        """Poll the connection; in COPY mode, transfer data."""
        while True:
            if self._step:
                state = self._step()
                if state != POLL_OK:
                    return state
            state = self._conn.poll()
            if state != POLL_OK:
                return state
            self._step = self._next_step()
            if not self._step:
                return POLL_OK

    def close(self) -> None:
        """Free everything, also what refers to this object.

        Otherwise the file and the connection would live until the garbage collector
        runs.
        """
        self._unsent.close()
        self._step = None
        self.error = None

    def _next_step(self) -> Callable[[], int] | None:
        """Return the next step after a result; ``None`` if it does not begin a COPY."""
        status = _result_status(self._pgconn)
        self.begun = self.begun or status in (COPY_OUT, COPY_IN)
        if status == COPY_OUT:
            return self._get
        if status == COPY_IN:
            return self._put
        return None

    def _get(self) -> int:
        """Write the rows that have arrived to the file."""
        try:
            write = self._file.write
            codec = self._codec if isinstance(self._file, io.TextIOBase) else None
            return write_rows(self._pgconn, write, codec, SLICE)
        except Exception as ex:  # noqa: BLE001
            # psycopg2 leaves the rest on the wire, and the next statement drops it.
            self.error = ex
            self._cancel_at = monotonic() + DRAIN
            self._step = self._drop
            return POLL_WRITE

    def _drop(self) -> int:
        """Read and drop the rest; if that takes long, ask the server to stop."""
        if monotonic() > self._cancel_at:
            self._conn.cancel()
            self._cancel_at = inf
        return write_rows(self._pgconn, None, None, SLICE)

    def _put(self) -> int:
        """Send the data of the file."""
        end = monotonic() + SLICE
        unsent = 0
        for piece in self._read_pieces():
            if self._libpq.PQputCopyData(self._pgconn, piece, len(piece)) != 1:
                self._reason = "error in PQputCopyData() call"
                break
            unsent += len(piece)
            if unsent >= UNSENT:
                unsent = 0
                self._unsent.send()
            if monotonic() > end:
                self._unsent.let_others_run()
                end = monotonic() + SLICE
            if self._unsent.lost:
                break  # libpq would still accept data, and could never send it
        reason = self._reason.encode(errors="replace") if self._reason else None
        self._libpq.PQputCopyEnd(self._pgconn, reason)
        self._unsent.send()
        return POLL_OK

    def _read_pieces(self) -> Iterator[bytes]:
        """Yield the data of the file; if that fails, note the reason and end."""
        try:
            read = self._file.read
        except Exception as ex:  # noqa: BLE001
            self.error = ex
            self._reason = _reason(ex)
            return
        while True:
            try:
                data = self._bytes(read(self._size))
            except Exception as ex:  # noqa: BLE001
                self._reason = _reason(ex)
                return
            if not data:
                return
            for start in range(0, len(data), PIECE):
                yield data[start : start + PIECE]

    def _bytes(self, data: object) -> bytes:
        if isinstance(data, str):
            return data.encode(self._codec)
        if isinstance(data, bytes):
            return data
        raise _NotBytes


class _NotBytes(Exception):
    """A file's read() has returned something other than text or bytes."""


class _Unsent:
    """The wait for libpq's send buffer, or for other greenlets, in a connection's form.

    While data is sent, the server may send something too, such as a notice for each row,
    and may read no more before that is received. So this waits until the socket can be
    written or read. `connection.poll` cannot ask for both, so an epoll set does.
    """

    # Asynchronous: the outer wait cancels the query, not this one.
    async_ = 1

    def __init__(self, conn: connection) -> None:
        self.info = conn.info
        self._fd = conn.fileno()
        self._pgconn = conn.pgconn_ptr
        self._libpq = libpq()
        self._wait: Any = get_wait_callback()
        self._epoll: Any = None
        self._yields = False
        self.lost = False
        """Whether the connection was found lost."""

    def send(self) -> None:
        """Wait until everything is sent, or the connection is lost."""
        if self._libpq.PQflush(self._pgconn) > 0:
            self._wait(self)

    def let_others_run(self) -> None:
        """Wait for one iteration of the loop, and until everything is sent."""
        self._yields = True
        self._wait(self)

    def poll(self) -> int:
        if not self._libpq.PQconsumeInput(self._pgconn):
            self.lost = True
            return POLL_OK
        yields, self._yields = self._yields, False
        if self._libpq.PQflush(self._pgconn) > 0 or yields:
            return POLL_READ
        return POLL_OK

    def fileno(self) -> int:
        if self._epoll is None:
            self._epoll = original("select", "epoll")()
            self._epoll.register(self._fd, _READ_OR_WRITE)
        return int(self._epoll.fileno())

    def close(self) -> None:
        if self._epoll:
            self._epoll.close()


def _reason(ex: Exception) -> str:
    """Return the error that psycopg2 sends to the server if the file cannot be read."""
    reason = "error in .read() call"
    if isinstance(ex, _NotBytes):
        return reason
    cls = type(ex)
    name = cls.__name__
    if not cls.__flags__ & _HEAP_TYPE and cls.__module__ != "builtins":
        name = f"{cls.__module__}.{name}"
    with suppress(Exception):  # the error may fail to tell what it is
        reason = f"{reason}: {name} {ex}"
    return reason[:1023]


def _run(self: cursor, name: str, file: object, size: int, statement: Any) -> None:  # noqa: ANN401
    """Execute a COPY *statement* with *file*, for the method *name*."""
    conn = self.connection
    if conn.status == STATUS_PREPARED:
        msg = f"{name} cannot be used with a prepared two-phase transaction"
        raise psycopg2.ProgrammingError(msg)
    if self.name is not None:
        _run_unnamed(self, name, file, size, statement)
        return
    copy = _Copy(conn, file, size)
    twin.polls[id(conn)] = copy.poll
    try:
        _execute_copy(self, copy, statement)
    finally:
        del twin.polls[id(conn)]
        copy.close()
        if copy.begun:
            # libpq's status at the begin of COPY; psycopg2 ignores that at its end.
            _statusmessage.set(self, "")


def _execute_copy(self: cursor, copy: _Copy, statement: Any) -> None:  # noqa: ANN401
    """Execute *statement*; raise the file's error rather than what follows from it."""
    try:
        _execute(self, statement)
    except psycopg2.Error:
        if copy.error is None:
            raise
    if copy.error:
        _rowcount.set(self, -1)
        raise copy.error


def _run_unnamed(self: cursor, *arguments: Any) -> None:  # noqa: ANN401
    """Execute a COPY for a named cursor, which would execute a DECLARE."""
    unnamed = cursor(self.connection)
    try:
        _run(unnamed, *arguments)
    except psycopg2.Error as ex:
        _error_cursor.set(ex, self)
        raise
    finally:
        for member in (_query, _rowcount, _statusmessage):
            member.set(self, member.get(unnamed))


def _is_refused(self: cursor) -> bool:
    """Return whether psycopg2 refuses for a reason other than green mode."""
    return self.closed or self.connection is None or bool(self.connection.async_)


@method(cursor, "copy_expert")
def _copy_expert(refuse: Refuse, self: cursor, *args: object, **kwargs: object) -> None:
    def bind(sql: str, file: object, size: Any = _DEFAULT_SIZE) -> _Arguments:  # noqa: ANN401
        return file, operator.index(size), sql

    arguments = _bound(bind, args, kwargs)
    if not arguments or _is_refused(self):
        return refuse(self, *args, **kwargs)
    file, size, statement = arguments
    if not (hasattr(file, "read") or hasattr(file, "write")):
        msg = (
            "file must be a readable file-like object for COPY FROM; "
            "a writable file-like object for COPY TO."
        )
        raise TypeError(msg)
    return _run(self, "copy_expert", file, size, statement)


@method(cursor, "copy_from")
def _copy_from(refuse: Refuse, self: cursor, *args: object, **kwargs: object) -> None:
    def bind(
        file: object,
        table: str,
        sep: str = "\t",
        null: str = "\\N",
        size: Any = _DEFAULT_SIZE,  # noqa: ANN401
        columns: Iterable[str] | None = None,
    ) -> _Arguments:
        return file, operator.index(size), table, columns, sep, null

    arguments = _bound(bind, args, kwargs)
    if not arguments or _is_refused(self) or not hasattr(arguments[0], "read"):
        return refuse(self, *args, **kwargs)
    file, size, *parts = arguments
    statement = _statement(self.connection, b"FROM stdin", *parts)
    return _run(self, "copy_from", file, size, statement)


@method(cursor, "copy_to")
def _copy_to(refuse: Refuse, self: cursor, *args: object, **kwargs: object) -> None:
    def bind(
        file: object,
        table: str,
        sep: str = "\t",
        null: str = "\\N",
        columns: Iterable[str] | None = None,
    ) -> _Arguments:
        return file, _DEFAULT_SIZE, table, columns, sep, null

    arguments = _bound(bind, args, kwargs)
    if not arguments or _is_refused(self) or not hasattr(arguments[0], "write"):
        return refuse(self, *args, **kwargs)
    file, size, *parts = arguments
    statement = _statement(self.connection, b"TO stdout", *parts)
    return _run(self, "copy_to", file, size, statement)


def _bound(
    bind: Callable[..., _Arguments], args: tuple[object, ...], kwargs: dict[str, object]
) -> _Arguments | None:
    """Return the arguments of a call; ``None`` if psycopg2 does not accept them."""
    try:
        arguments = bind(*args, **kwargs)
    except TypeError:
        return None
    # The table's name, the delimiter and the text for NULL become C strings.
    texts = arguments[2:3] + arguments[4:]
    if len(arguments) > 3 and not all(
        isinstance(text, str) and "\0" not in text for text in texts
    ):
        return None
    return arguments


def _statement(
    conn: connection,
    direction: bytes,
    table: str,
    columns: Iterable[str] | None,
    sep: str,
    null: str,
) -> bytes:
    """Return the statement that psycopg2 builds from these arguments."""
    codec = encodings[conn.encoding]

    def identifier(name: str | bytes) -> bytes:
        return quote_ident(name, conn).encode(codec)

    def literal(text: str) -> bytes:
        quoted = QuotedString(text.encode())
        quoted.prepare(conn)
        return bytes(quoted.getquoted())

    names = b""
    if columns is not None:
        quoted = b",".join(map(identifier, columns))
        names = b"(%s)" % quoted if quoted else b")"  # as psycopg2 does
    return b"COPY %s%s %s WITH DELIMITER AS %s NULL AS %s" % (
        identifier(table),
        names,
        direction,
        literal(sep),
        literal(null),
    )


class _NoFile:
    """An empty file, to end a COPY that has none."""

    def read(self, _size: int) -> bytes:
        raise _NotBytes

    def write(self, _row: bytes) -> None:
        raise _NotBytes


def end_refused_copy(conn: connection) -> None:
    """End the COPY that ``execute()`` of *conn* has refused, if there is one.

    psycopg2 leaves it under way. While it blocks, libpq ends it before the next
    statement; in green mode it does not. Raise the server's error about its end.
    """
    if (
        conn.closed
        or conn.get_transaction_status() != TRANSACTION_STATUS_ACTIVE
        or conn.async_
        or not _is_copying(conn)
    ):
        return
    copy = _Copy(conn, _NoFile(), 1)
    try:
        # In blocking() libpq would end it, but not after the block.
        polling.wait(conn, copy.poll)
    finally:
        copy.close()


def _is_copying(conn: connection) -> bool:
    """Return whether a COPY is under way, which a replication is not."""
    pgconn = conn.pgconn_ptr
    if libpq().PQisBusy(pgconn):  # the next result would have to be waited for
        return False
    return _result_status(pgconn) in (COPY_OUT, COPY_IN)


def _result_status(pgconn: Any) -> int:  # noqa: ANN401
    """Return the status of the next result."""
    # In COPY mode libpq returns the same result at each call, else none.
    library = libpq()
    result = library.PQgetResult(pgconn)
    status: int = library.PQresultStatus(result)
    library.PQclear(result)
    return status


REPLACEMENTS = (_copy_expert, _copy_from, _copy_to)
