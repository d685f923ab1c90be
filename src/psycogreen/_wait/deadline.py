"""``connect_timeout``, which libpq leaves to whoever polls a connection attempt."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import psycopg2
from psycopg2.extensions import STATUS_SETUP

from psycogreen._errors import WaitTimeout

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from psycogreen._wait.native import SocketWait

# What connection.status is until the connection is made. psycopg2.extensions
# has no name for the second one.
STATUS_CONNECTING = (STATUS_SETUP, 20)

DEFAULT_PORT = 5432

_INT_MAX = 2**31 - 1


class ConnectTimeout(psycopg2.OperationalError):
    """A host did not answer in time. The text is libpq's."""

    def __init__(self, conn: connection, errors: str) -> None:
        """Tell where *conn* was at; *errors* ends with the beginning of that host's."""
        super().__init__(f"{errors}timeout expired\n")
        self.host = conn.info.host
        self.port = conn.info.port
        self.errors = errors


class ConnectWait:
    """A wait for a socket that ends when the host's time to connect is up.

    The time begins anew whenever libpq goes on to another host, or to another
    address of the same host: so says libpq's documentation of
    ``connect_timeout``, and so do its own blocking functions.
    """

    def __init__(self, conn: connection, wait_socket: SocketWait) -> None:
        """Wait with *wait_socket*, by the ``connect_timeout`` of *conn*."""
        self._conn = conn
        self._wait_socket = wait_socket
        self._first_host = _first_host(conn)
        self._seconds = connect_timeout(conn)
        self._host: object = None
        self._end = 0.0

    def __call__(self, fd: int, *, write: bool, timeout: float | None) -> None:
        """Wait for *fd*; raise `ConnectTimeout` when the host's time is up."""
        left = self._left()
        if left is None or (timeout is not None and timeout < left):
            self._wait_socket(fd, write=write, timeout=timeout)
            return
        try:
            self._wait_socket(fd, write=write, timeout=max(left, 0))
        except WaitTimeout:
            errors = self._first_host + (self._conn.info.error_message or "")
            raise ConnectTimeout(self._conn, errors) from None

    def _left(self) -> float | None:
        """Return the seconds left for the host that libpq is at; ``None``: no limit."""
        if self._seconds is None:
            return None
        info = self._conn.info
        # libpq does not tell which address it is at, but notes why it has left one.
        host = (info.host, info.port, info.error_message)
        now = time.monotonic()
        if host != self._host:
            self._host = host
            self._end = now + self._seconds
        return self._end - now

    def complete(self, error: psycopg2.OperationalError) -> None:
        """Put the words that name the host into *error*, if it is libpq's own."""
        if not isinstance(error, (ConnectTimeout, WaitTimeout)):
            error.args = (self._first_host + str(error),)


def connect_timeout(conn: connection) -> int | None:
    """Return the seconds *conn* has for each host; ``None`` if without limit.

    libpq's meaning and wording: a whole number from the connection string, the
    service file or ``PGCONNECT_TIMEOUT``; none, zero or a negative one is no limit.
    """
    value = conn.info.dsn_parameters.get("connect_timeout")
    if value is None:
        return None
    # strtol(), and then nothing but white space
    if not re.fullmatch(r"\s*[+-]?[0-9]+\s*", value) or abs(int(value)) > _INT_MAX:
        msg = (
            f'invalid integer value "{value}" for connection option "connect_timeout"\n'
        )
        raise psycopg2.OperationalError(msg)
    return seconds if (seconds := int(value)) > 0 else None


def error_prefix(host: str, address: str, port: str | int) -> str:
    """Return how libpq begins what it says about a host (since PostgreSQL 14)."""
    port = port or DEFAULT_PORT
    if host.startswith(("/", "@")):
        socket = f"{host}/.s.PGSQL.{port}"
        return f'connection to server on socket "{socket}" failed: '
    name = f'"{host or address}"'
    if address and address != (host or address):
        name += f" ({address})"
    return f"connection to server at {name}, port {port} failed: "


def _first_host(conn: connection) -> str:
    """Return the beginning of the error of the host that *conn* is at.

    libpq has noted it, too, but forgets it when psycopg2 makes the connection
    non-blocking: it is what its errors lack.
    """
    info = conn.info
    parameters = info.dsn_parameters
    rows = zip(
        parameters.get("host", "").split(","),
        parameters.get("hostaddr", "").split(","),
        strict=False,
    )
    address = next((address for host, address in rows if host == info.host), "")
    return error_prefix(info.host, address, info.port)
