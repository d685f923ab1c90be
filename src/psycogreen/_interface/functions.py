"""Functions of the server, called cooperatively with binary arguments and results.

psycopg2 would send the data as text, which is twice as long. So this module calls libpq
itself. The caller holds the connection's turn, so that psycopg2 makes no query meanwhile,
and the wait callback polls the call instead of the connection.
"""

from __future__ import annotations

import ctypes

import psycopg2
from psycopg2.extensions import POLL_OK, POLL_READ, POLL_WRITE, connection

from psycogreen._interface import polling
from psycogreen._interface.members import Member
from psycogreen._wait.libpq import CONNECTION_BAD, TUPLES_OK, libpq

_BINARY = 1

_BROKEN = 2
"""The value of ``connection.closed`` after the session was lost."""

_closed = Member(connection, "closed")


def call(conn: connection, statement: bytes, *arguments: bytes) -> bytes:
    """Return the first value of the first row of the result of *statement*.

    The caller must have the turn on *conn*. Raise `psycopg2.OperationalError` with the
    server's message if the statement fails, as psycopg2's large objects do. An
    interrupted wait closes the connection, as in any query.
    """
    call = _Call(conn)
    try:
        call.send(statement, arguments)
        polling.wait(conn, call.poll)
        return call.value()
    finally:
        call.close()


class _Call:
    """A statement under way."""

    def __init__(self, conn: connection) -> None:
        self._conn = conn
        self._pgconn = conn.pgconn_ptr
        self._libpq = libpq()
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
