"""One connection of a pool: whether it is alive, how it is reset, how it ends."""

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
from psycopg2.extensions import (
    STATUS_READY,
    TRANSACTION_STATUS_ACTIVE,
    TRANSACTION_STATUS_IDLE,
)

from psycogreen._wait import forks
from psycogreen._wait.native import is_main_thread, original

if TYPE_CHECKING:
    from psycogreen._pool.traces import WatchedConnection

Configure = Callable[["WatchedConnection"], object]

# The settings whose changes the server reports, and that psycopg2 relies on.
_REPORTED = ("client_encoding", "DateStyle", "TimeZone", "session_authorization")

# Seconds. A server that cannot be reached is given up after about 20.
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
_UNACKNOWLEDGED = 20


class Session:
    """A connection, and its server process until that has ended.

    It holds a duplicate of the socket. The server closes its end when its process ends;
    the duplicate shows that even after libpq has closed its own descriptor, as it does
    when a query is interrupted.
    """

    def __init__(self, conn: WatchedConnection, lifetime: float) -> None:
        """Take over *conn*, to be used for about *lifetime* seconds."""
        self.conn = conn
        # Vary it, so that connections opened together are not replaced together.
        self._expires = time.monotonic() + lifetime * random.uniform(0.95, 1)
        try:
            self._socket = os.dup(conn.fileno())
        except OSError:  # no descriptor is left
            conn.close()
            raise
        self._poll = original("select", "poll")()
        self._poll.register(self._socket, select.POLLIN)

    def prepare(self, configure: Configure) -> None:
        """Call *configure*, and remember the resulting state as that of a new session.

        Raise `psycopg2.ProgrammingError` if *configure* leaves it in a transaction.
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
        # With autocommit psycopg2 stores these as defaults of the session, which
        # "discard all" resets.
        modes = (conn.isolation_level, conn.readonly, conn.deferrable)
        self._needs_defaults = conn.autocommit and modes != (None, None, None)
        conn.traces = False
        self.idle_since = time.monotonic()

    def is_old(self) -> bool:
        """Return whether its lifetime is over."""
        return self._expires < time.monotonic()

    def is_alive(self) -> bool:
        """Return whether the server has neither closed the session nor sent anything.

        An idle session receives only the server's end or a change of its settings. In
        both cases a new connection is better. Only the owner of the session may call
        this: two threads cannot use the poll object at once.
        """
        return not self.conn.closed and not self._poll.poll(0)

    def renew(self, configure: Configure) -> bool:
        """Reset the session to the state of a new one; return whether that succeeded.

        It waits for a query if the session is in a transaction, or if a statement may
        have changed the session. In the latter case it calls *configure* again.
        """
        conn = self.conn
        if conn.closed or conn.held:
            return False
        # They differ if the text of a statement began or ended a transaction.
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
        """Execute *statement* outside a transaction."""
        self.conn.autocommit = True
        with self.conn.cursor() as cursor:
            cursor.execute(statement)
        self.conn.autocommit = self._autocommit

    def _restore(self) -> None:
        """Restore the state that psycopg2 keeps in the connection object."""
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
        """Return psycopg2's state of the session, and the settings the server reports."""
        conn = self.conn
        return (
            conn.get_transaction_status(),
            conn.isolation_level,
            conn.readonly,
            conn.deferrable,
            *map(conn.get_parameter_status, _REPORTED),
        )

    def close(self) -> None:
        """Close the connection. The server's process may end later: see `await_end`.

        Does nothing during a query of another greenlet or thread, which it would have to
        wait for; `await_end` then ends the session after the query.
        """
        if self.conn.get_transaction_status() == TRANSACTION_STATUS_ACTIVE:
            return
        with contextlib.suppress(psycopg2.Error):
            self.conn.close()

    def await_end(self) -> None:
        """Wait until the server's process has ended, after `close`.

        There is no time limit: an interrupted query that could not be cancelled runs on,
        and its process counts as one of the server's connections.
        """
        # In a native thread, a monkey-patched socket would make a loop for the thread.
        kind = socket.socket if is_main_thread() else original("socket", "socket")
        with kind(fileno=self._socket) as duplicate:
            duplicate.settimeout(None)
            if duplicate.family != socket.AF_UNIX:
                _give_up_in_time(duplicate)
            with contextlib.suppress(OSError):
                # The duplicate keeps the socket open for the server, which may wait for
                # the rest of a message or of a COPY: shut it down.
                duplicate.shutdown(socket.SHUT_WR)
                while duplicate.recv(65536):
                    pass

    def leave(self) -> None:
        """Close the duplicate: nobody waits for the end of the server's process."""
        os.close(self._socket)

    def leave_to_parent(self) -> None:
        """Drop an idle connection that belongs to the parent of this forked process.

        Closing it must not end the parent's session: the socket is replaced before the
        connection is closed.
        """
        # The application may have closed it, if it has kept a reference.
        if not self.conn.closed:
            forks.disconnect([self.conn.fileno()])
        self.leave()
        self.close()


def _give_up_in_time(duplicate: socket.socket) -> None:
    """Make the kernel end the connection if the server cannot be reached."""
    duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if option := getattr(socket, name, None):
            duplicate.setsockopt(socket.IPPROTO_TCP, option, value)
    if option := getattr(socket, "TCP_USER_TIMEOUT", None):
        duplicate.setsockopt(socket.IPPROTO_TCP, option, _UNACKNOWLEDGED * 1000)
