"""``connect_timeout``, which libpq leaves to the code that polls."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

import psycopg2
from psycopg2.extensions import STATUS_SETUP

from psycogreen._errors import WaitTimeout

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from psycogreen._wait.native import SocketWait

# The values of connection.status until the connection is established.
# psycopg2.extensions has no name for the second one.
STATUS_CONNECTING = (STATUS_SETUP, 20)

DEFAULT_PORT = 5432

_INT_MAX = 2**31 - 1


class ConnectTimeout(psycopg2.OperationalError):
    """A host did not answer in time. The message is libpq's."""


class Attempt(Protocol):
    """An attempt to connect: see `psycogreen._interface.attempts`."""

    is_taken: bool
    """Whether its connection is known."""

    restarts: int
    """How often it has restarted with other hosts."""

    def is_of(self, conn: connection) -> bool:
        """Return whether *conn* tries the hosts of this attempt."""

    def begin(self, conn: connection) -> int | None:
        """Record the host that *conn* tries, before its first wait.

        When psycopg2 makes the connection non-blocking, libpq forgets the beginning of
        its error. Return the seconds for each host; ``None`` if without limit.
        """

    def has_one_address(self) -> bool:
        """Return whether libpq has only one address to try."""

    def leave_host(self, conn: connection) -> None:
        """Leave the host that *conn* is at, whose time is up, and try the others.

        Raise `ConnectTimeout` if there are none.
        """

    def goes_on_after(self, conn: connection, error: psycopg2.OperationalError) -> bool:
        """Return whether further hosts are to be tried after *error* of ``poll()``.

        Complete *error*, from which libpq has lost the beginning.
        """

    def go_on(self, conn: connection) -> None:
        """Try them. *conn* next waits until its socket can be written.

        Raise `psycopg2.OperationalError` if no host is left.
        """


current: ContextVar[Attempt | None] = ContextVar("psycogreen_attempt", default=None)
"""The attempt that ``psycopg2.connect()`` has begun in this greenlet."""

begun_elsewhere: Callable[[], Attempt]
"""Makes the attempt of a connection of which only the object is known. It is set by
`psycogreen._interface.attempts`."""


def take_attempt(conn: connection) -> Attempt:
    """Return the attempt of *conn*, which waits for the first time."""
    attempt = current.get()
    # A further connection that the connection factory makes is a different attempt.
    if attempt is None or attempt.is_taken or not attempt.is_of(conn):
        attempt = begun_elsewhere()  # noqa: F821
    attempt.is_taken = True
    return attempt


class ConnectWait:
    """A wait for a socket that ends when the host's time to connect is up.

    The time starts again when libpq tries another host, or another address of the same
    host, as libpq's documentation of ``connect_timeout`` describes and its blocking
    functions do.
    """

    def __init__(
        self, conn: connection, attempt: Attempt, wait_socket: SocketWait, seconds: int
    ) -> None:
        """Wait with *wait_socket*; each host of *attempt* has *seconds* to answer."""
        self._conn = conn
        self._attempt = attempt
        self._wait_socket = wait_socket
        self._seconds = seconds
        self._host: object = None
        self._end = time.monotonic() + seconds

    def __call__(self, fd: int, *, write: bool, timeout: float | None) -> None:
        """Wait for *fd*; if the time is up, wait for the socket of the next host."""
        while True:
            left = self._left()
            limited = timeout is not None and timeout < left
            try:
                self._wait_socket(
                    fd, write=write, timeout=timeout if limited else max(left, 0)
                )
            except WaitTimeout:
                if limited:
                    raise
            else:
                return
            self._attempt.leave_host(self._conn)
            self._end = time.monotonic() + self._seconds
            fd, write = self._conn.fileno(), True  # as PQconnectStart() requires

    def _left(self) -> float:
        """Return the seconds left for the host that libpq is at."""
        now = time.monotonic()
        if not self._attempt.has_one_address():
            info = self._conn.info
            # The message has grown if libpq has left an address.
            message = info.error_message
            host = (self._attempt.restarts, info.host, info.port, message)
            if host != self._host:
                self._host = host
                self._end = now + self._seconds
        return self._end - now


def parse_connect_timeout(value: str | None) -> int | None:
    """Return the seconds of a connect_timeout; ``None`` if without limit.

    *value* comes from the connection string, the service file or ``PGCONNECT_TIMEOUT``.
    As in libpq it is a whole number; ``None``, zero and negative numbers mean no limit.
    Raise `psycopg2.OperationalError`, with libpq's message, for anything else.
    """
    if value is None:
        return None
    # As libpq: strtol(), then only white space may follow.
    if not re.fullmatch(r"\s*[+-]?[0-9]+\s*", value) or abs(int(value)) > _INT_MAX:
        msg = (
            f'invalid integer value "{value}" for connection option "connect_timeout"\n'
        )
        raise psycopg2.OperationalError(msg)
    return seconds if (seconds := int(value)) > 0 else None


def error_prefix(host: str, address: str, port: str | int) -> str:
    """Return the beginning of libpq's error about a host (since PostgreSQL 14).

    *host* is a name, an address or the folder of a unix socket, or empty; *address* is
    the resolved address, or empty.
    """
    host, port = host or address, port or DEFAULT_PORT
    if host.startswith(("/", "@")):
        socket = f"{host}/.s.PGSQL.{port}"
        return f'connection to server on socket "{socket}" failed: '
    found = f" ({address})" if address and address != host else ""
    return f'connection to server at "{host}"{found}, port {port} failed: '
