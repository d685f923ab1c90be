"""COPY, cooperatively: the data is carried inside psycopg2's own query.

In green mode psycopg2 sends a COPY statement like any other and waits for its first
result; then it refuses to go on. So the wait is made to last longer: what is polled
in place of the connection notices that libpq is in COPY mode, carries the data, and
polls the connection for the result that follows. psycopg2 gets that one alone, and
does with it what it does with every result, errors included. As in every query it
holds the connection's lock meanwhile; and a timeout or a kill interrupts a wait.
"""

from __future__ import annotations

import io
import operator
from collections.abc import Callable, Iterable, Iterator
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

from psycogreen._interface.libpq import COPY_IN, COPY_OUT, library
from psycogreen._interface.members import Member
from psycogreen._interface.replacing import Replacement, method
from psycogreen._wait import twin
from psycogreen._wait.native import original

if twin.compiled:
    try:
        from psycogreen._interface._rows import write_rows
    except ImportError:
        from psycogreen._interface.rows import write_rows
else:
    from psycogreen._interface.rows import write_rows

SLICE = 0.005
"""Seconds after which other greenlets have their turn, however fast the data comes."""

PIECE = 128 * 1024
"""Bytes that are given to libpq at once, at the most: it may loop on larger ones, see
https://github.com/psycopg/psycopg/issues/255."""

UNSENT = 64 * 1024
"""Bytes after which libpq is made to send: it would buffer all there is."""

DRAIN = 1.0
"""Seconds for which rows are read and dropped after the file has failed to take one."""

_DEFAULT_SIZE = 8192

# EPOLLIN | EPOLLOUT, which gevent removes from the select module.
_READ_OR_WRITE = 1 | 4

_HEAP_TYPE = 1 << 9

# psycopg2's own, whatever replaces it.
_execute = cursor.execute

_error_cursor = Member(psycopg2.Error, "cursor")
_query = Member(cursor, "query")
_rowcount = Member(cursor, "rowcount")
_statusmessage = Member(cursor, "statusmessage")

Refuse = Callable[..., None]
"""What psycopg2 does in green mode: it refuses, and has good reasons first."""

_Arguments = tuple[Any, ...]
"""A file, how much to read at once, and what the statement is made of."""


class _Copy:
    """A COPY statement and its file, while `_execute` waits for it."""

    def __init__(self, conn: connection, file: Any, size: int) -> None:  # noqa: ANN401
        self._conn = conn
        self._libpq = library()
        self._pgconn = conn.pgconn_ptr or 0
        self._codec: str = encodings[conn.encoding]
        self._file = file
        self._size = size
        self._unsent = _Unsent(conn)
        self._step: Callable[[], int] | None = None
        """Carries some data; returns what the connection's poll() would."""
        self.begun = False
        """Whether the statement was a COPY with this client."""
        self.error: Exception | None = None
        """What psycopg2 would let out of the file."""

    def poll(self) -> int:
        """Poll the connection, and carry the data when that is due."""
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
        self._unsent.close()

    def _next_step(self) -> Callable[[], int] | None:
        """Return what is to be done after a result: nothing, unless that was COPY's."""
        # In COPY mode libpq returns the same result again and again, else none.
        result = self._libpq.PQgetResult(self._pgconn)
        status = self._libpq.PQresultStatus(result)
        self._libpq.PQclear(result)
        self.begun = self.begun or status in (COPY_OUT, COPY_IN)
        if status == COPY_OUT:
            return self._get
        if status == COPY_IN:
            self._pieces = self._read_pieces()
            return self._put
        return None

    def _get(self) -> int:
        """Let the file write what has come."""
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
        """Read the rest for nobody; ask the server to end it if that takes long."""
        if monotonic() > self._cancel_at:
            self._conn.cancel()
            self._cancel_at = inf
        return write_rows(self._pgconn, None, None, SLICE)

    def _put(self) -> int:
        """Send what the file has to be read."""
        end = monotonic() + SLICE
        unsent = 0
        reason = None
        try:
            for piece in self._pieces:
                if self._libpq.PQputCopyData(self._pgconn, piece, len(piece)) < 0:
                    reason = "error in PQputCopyData() call"
                    break
                unsent += len(piece)
                if unsent >= UNSENT:
                    unsent = 0
                    self._unsent.send()
                if monotonic() > end:
                    return POLL_WRITE
        except Exception as ex:  # noqa: BLE001
            reason = _reason(ex)
        error = reason.encode(errors="replace") if reason else None
        self._libpq.PQputCopyEnd(self._pgconn, error)
        self._unsent.send()
        return POLL_OK

    def _read_pieces(self) -> Iterator[bytes]:
        try:
            read = self._file.read
        except AttributeError as ex:
            self.error = ex
            raise
        while data := self._bytes(read(self._size)):
            for start in range(0, len(data), PIECE):
                yield data[start : start + PIECE]

    def _bytes(self, data: object) -> bytes:
        if isinstance(data, str):
            return data.encode(self._codec)
        if isinstance(data, bytes):
            return data
        raise _NotBytes


class _NotBytes(Exception):
    """What a file's read() has returned cannot be copied."""


class _Unsent:
    """The wait for what libpq could not send at once.

    For the wait callback it is one more thing to poll. While data is sent, the server
    may have something to say, such as a notice for each row, and not read on before
    it is rid of it; so either is waited for, which `connection.poll` cannot tell. An epoll
    set can.
    """

    # There is no query to cancel here: the wait around this one does that.
    async_ = 1

    def __init__(self, conn: connection) -> None:
        self.info = conn.info
        self._fd = conn.fileno()
        self._pgconn = conn.pgconn_ptr
        self._libpq = library()
        self._wait: Any = get_wait_callback()
        self._epoll: Any = None

    def send(self) -> None:
        """Return when all is sent, or the connection is lost."""
        if self._libpq.PQflush(self._pgconn) > 0:
            self._wait(self)

    def poll(self) -> int:
        self._libpq.PQconsumeInput(self._pgconn)
        return POLL_READ if self._libpq.PQflush(self._pgconn) > 0 else POLL_OK

    def fileno(self) -> int:
        if self._epoll is None:
            self._epoll = original("select", "epoll")()
            self._epoll.register(self._fd, _READ_OR_WRITE)
        return int(self._epoll.fileno())

    def close(self) -> None:
        if self._epoll:
            self._epoll.close()


def _reason(ex: Exception) -> str:
    """Return what psycopg2 tells the server when the file cannot be read."""
    if isinstance(ex, _NotBytes):
        return "error in .read() call"
    cls = type(ex)
    name = cls.__name__
    if not cls.__flags__ & _HEAP_TYPE and cls.__module__ != "builtins":
        name = f"{cls.__module__}.{name}"
    return f"error in .read() call: {name} {ex}"[:1023]


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
        _execute(self, statement)
    except psycopg2.Error:
        if copy.error is None:
            raise
    finally:
        del twin.polls[id(conn)]
        copy.close()
        if copy.begun:
            # What libpq says when COPY begins; psycopg2 does not look at its end.
            _statusmessage.set(self, "")
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
    """Return whether psycopg2 refuses for another reason than that it is green."""
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
    # The name of the table, the delimiter and the word for NULL go through C's strings.
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
    """Return the statement that psycopg2 makes of the same."""
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
    """What a COPY is ended with that has no file."""

    def read(self, _size: int) -> bytes:
        raise _NotBytes

    def write(self, _row: bytes) -> None:
        raise _NotBytes


def end_refused_copy(conn: connection) -> None:
    """End the COPY that ``execute()`` of *conn* has refused, if there is one.

    psycopg2 leaves it under way. While it blocks, libpq ends it before the next
    statement; in green mode nobody does. Raise what the server says about its end.
    """
    if (
        not conn.closed
        and conn.info.transaction_status == TRANSACTION_STATUS_ACTIVE
        and not (conn.async_ or conn.isexecuting())
    ):
        _end_copy(conn)


def _end_copy(conn: connection) -> None:
    wait: Any = get_wait_callback()
    copy = _Copy(conn, _NoFile(), 1)
    twin.polls[id(conn)] = copy.poll
    try:
        wait(conn)
    finally:
        del twin.polls[id(conn)]
        copy.close()


def _ends_refused_copy(name: str) -> Replacement:
    """Let a method of connections first end a COPY that was refused in ``blocking()``.

    Any other is ended at once, see `failures`.
    """

    @method(connection, name)
    def call(
        original: Callable[..., object], self: connection, *args: object
    ) -> object:
        end_refused_copy(self)
        return original(self, *args)

    return call


REPLACEMENTS = (
    _copy_expert,
    _copy_from,
    _copy_to,
    *map(_ends_refused_copy, ("commit", "rollback", "reset")),
)
