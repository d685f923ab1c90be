"""Functions of the server, called cooperatively with binary arguments and results.

psycopg2 would send the data as text, which is twice as long. So this module calls libpq
itself. The caller holds the connection's turn, so that psycopg2 makes no query meanwhile,
and the wait callback polls the call instead of the connection.
"""

from __future__ import annotations

import ctypes
from typing import Any

import psycopg2
from psycopg2.extensions import (
    POLL_OK,
    POLL_READ,
    POLL_WRITE,
    connection,
    get_wait_callback,
)

from psycogreen._interface.libpq import CONNECTION_BAD, TUPLES_OK, library
from psycogreen._interface.members import Member
from psycogreen._wait import native, twin

_BINARY = 1

_BROKEN = 2
"""The value of ``connection.closed`` after the session was lost."""

_closed = Member(connection, "closed")

# psycopg2's own method: its replacement refuses to run during a query.
_close = connection.close


def call(conn: connection, statement: bytes, *arguments: bytes) -> bytes:
    """Return the first value of the first row of the result of *statement*.

    The caller must have the turn on *conn*. Raise `psycopg2.OperationalError` with the
    server's message if the statement fails, as psycopg2's large objects do. An
    interrupted wait closes the connection, as in any query.
    """
    call = _Call(conn)
    try:
        call.send(statement, arguments)
        _await(conn, call)
        return call.value()
    finally:
        call.close()


def _await(conn: connection, call: _Call) -> None:
    wait: Any = get_wait_callback() or _block
    twin.polls[id(conn)] = call.poll
    try:
        wait(conn)
    except BaseException:
        _close(conn)
        raise
    finally:
        del twin.polls[id(conn)]


def _block(conn: connection) -> None:
    """Wait like the wait callback, which another greenlet has removed meanwhile."""
    poll = twin.polls[id(conn)]
    while (state := poll()) != POLL_OK:
        native.wait_socket(conn.fileno(), write=state == POLL_WRITE, timeout=None)


class _Call:
    """A statement under way."""

    def __init__(self, conn: connection) -> None:
        self._conn = conn
        self._pgconn = conn.pgconn_ptr
        self._libpq = library()
        self._results: list[int] = []

    def send(self, statement: bytes, arguments: tuple[bytes, ...]) -> None:
        count = len(arguments)
        if not self._libpq.PQsendQueryParams(
            self._pgconn,
            statement,
            count,
            None,
            (ctypes.c_char_p * count)(*arguments),
            (ctypes.c_int * count)(*map(len, arguments)),
            (ctypes.c_int * count)(*[_BINARY] * count),
            _BINARY,
        ):
            raise self._error()

    def poll(self) -> int:
        """Return the state of the call, as ``connection.poll()`` does for a query."""
        libpq, pgconn = self._libpq, self._pgconn
        if not libpq.PQconsumeInput(pgconn):
            return POLL_OK  # the session is lost, and `value` raises
        # The server reads the whole statement before it answers at length, so this need
        # not wait for reading and writing at once.
        if libpq.PQflush(pgconn) > 0:
            return POLL_WRITE
        while not libpq.PQisBusy(pgconn):
            result = libpq.PQgetResult(pgconn)
            if not result:
                return POLL_OK
            self._results.append(result)
        return POLL_READ

    def value(self) -> bytes:
        libpq = self._libpq
        if not self._results or libpq.PQresultStatus(self._results[0]) != TUPLES_OK:
            raise self._error()
        place = (self._results[0], 0, 0)
        return ctypes.string_at(libpq.PQgetvalue(*place), libpq.PQgetlength(*place))

    def close(self) -> None:
        for result in self._results:
            self._libpq.PQclear(result)

    def _error(self) -> psycopg2.OperationalError:
        message = self._libpq.PQerrorMessage(self._pgconn).decode(errors="replace")
        if self._libpq.PQstatus(self._pgconn) == CONNECTION_BAD:
            _closed.set(self._conn, _BROKEN)
        return psycopg2.OperationalError(message)
