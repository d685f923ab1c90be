"""One connection of a pool: whether it is alive, how it becomes as new, how it ends."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.extensions import STATUS_READY, TRANSACTION_STATUS_IDLE

from psycogreen._wait import forks
from psycogreen._wait.native import original

if TYPE_CHECKING:
    from psycogreen._pool.traces import WatchedConnection

Configure = Callable[["WatchedConnection"], object]

# What the server reports by itself when it changes, and psycopg2 relies on.
_REPORTED = ("client_encoding", "DateStyle", "TimeZone", "session_authorization")

# Seconds. A server that cannot be reached is given up after about 20.
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
_UNACKNOWLEDGED = 20


class Session:
    """A connection, and its server process until that is gone.

    It holds a duplicate of the socket: the server closes its end when its process
    ends, and only the duplicate can tell that once libpq has closed its own, as it
    does when a query is interrupted.
    """

    def __init__(self, conn: WatchedConnection, lifetime: float) -> None:
        """Take over *conn*, to be used for about *lifetime* seconds."""
        self.conn = conn
        # Not all at once: those opened together would be replaced together.
        self._expires = time.monotonic() + lifetime * random.uniform(0.95, 1)
        self._socket = os.dup(conn.fileno())

    def prepare(self, configure: Configure) -> None:
        """Have *configure* set up the connection, and remember its state as the new one.

        Raise `psycopg2.ProgrammingError` if that leaves it in a transaction.
        """
        conn = self.conn
        configure(conn)
        self._new = self._state()
        if self._new[0] != TRANSACTION_STATUS_IDLE:
            msg = "configure has left a connection in a transaction: it must commit"
            raise psycopg2.ProgrammingError(msg)
        self._autocommit = conn.autocommit
        self._cursor_factory = conn.cursor_factory
        self._casters = dict(conn.string_types)
        # With autocommit psycopg2 keeps these as defaults of the session, which
        # "discard all" would take away.
        modes = (conn.isolation_level, conn.readonly, conn.deferrable)
        self._needs_defaults = conn.autocommit and modes != (None, None, None)
        conn.traces = False
        self.idle_since = time.monotonic()

    def is_old(self) -> bool:
        """Return whether it has lived for as long as it should."""
        return self._expires < time.monotonic()

    def is_alive(self) -> bool:
        """Return whether the server has neither hung up nor spoken.

        An idle server has nothing to say but that it ends, or that it was told to
        change its settings: in either case a new connection is better.
        """
        # A poll object of its own: two threads may ask at once.
        poll = original("select", "poll")()
        poll.register(self._socket, select.POLLIN)
        return not self.conn.closed and not poll.poll(0)

    def renew(self, configure: Configure) -> bool:
        """Bring the connection into the state of a new one; return whether it is.

        Wait for a query if it is in a transaction, and if a statement may have left
        something behind; the latter takes *configure* as well.
        """
        conn = self.conn
        if conn.closed or conn.held:
            return False
        # They differ where a statement's own text has begun or ended a transaction.
        idle = conn.get_transaction_status() == TRANSACTION_STATUS_IDLE
        if not idle or conn.status != STATUS_READY:
            conn.rollback()
            if conn.get_transaction_status() != TRANSACTION_STATUS_IDLE:
                self._execute("rollback")
        if conn.traces:
            if self._needs_defaults:
                return False
            self._execute("discard all")
            configure(conn)
            conn.traces = False
        self._restore()
        self.idle_since = time.monotonic()
        return self._state() == self._new

    def _execute(self, statement: str) -> None:
        """Execute *statement* in no transaction."""
        self.conn.autocommit = True
        with self.conn.cursor() as cursor:
            cursor.execute(statement)
        self.conn.autocommit = self._autocommit

    def _restore(self) -> None:
        """Undo what psycopg2 keeps by itself."""
        conn = self.conn
        if conn.autocommit != self._autocommit:
            conn.autocommit = self._autocommit
        conn.cursor_factory = self._cursor_factory
        if conn.string_types != self._casters:
            conn.string_types.clear()
            conn.string_types.update(self._casters)
        for messages in conn.notices, conn.notifies:
            if messages:
                messages.clear()

    def _state(self) -> tuple[Any, ...]:
        """Return what psycopg2 keeps of a session, and what the server reports."""
        conn = self.conn
        return (
            conn.get_transaction_status(),
            conn.isolation_level,
            conn.readonly,
            conn.deferrable,
            *map(conn.get_parameter_status, _REPORTED),
        )

    def close(self) -> None:
        """Close the connection, which the server notices in its own time."""
        with contextlib.suppress(psycopg2.Error):
            self.conn.close()

    def await_end(self) -> None:
        """Wait until the server's process has ended, after `close`.

        It has no limit of time: an interrupted query that could not be cancelled
        goes on, and counts as one of the server's connections.
        """
        with socket.socket(fileno=self._socket) as duplicate:
            duplicate.settimeout(None)
            if duplicate.family != socket.AF_UNIX:
                _give_up_in_time(duplicate)
            with contextlib.suppress(OSError):
                # libpq's end of the socket is closed, but this one kept it open for
                # the server, which may be in the middle of a message or of a COPY.
                duplicate.shutdown(socket.SHUT_WR)
                while duplicate.recv(65536):
                    pass

    def leave_to_parent(self) -> None:
        """Let go of an idle connection that a fork has brought into this process.

        The parent's server must not hear of it: the socket is exchanged before it
        is closed.
        """
        forks.disconnect([self.conn.fileno()])
        os.close(self._socket)
        self.close()


def _give_up_in_time(duplicate: socket.socket) -> None:
    """Have the kernel end the connection to a server that cannot be reached."""
    duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if option := getattr(socket, name, None):
            duplicate.setsockopt(socket.IPPROTO_TCP, option, value)
    if option := getattr(socket, "TCP_USER_TIMEOUT", None):
        duplicate.setsockopt(socket.IPPROTO_TCP, option, _UNACKNOWLEDGED * 1000)
