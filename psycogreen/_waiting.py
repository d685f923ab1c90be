"""The loop that drives ``connection.poll()``, written once for every framework."""

from __future__ import annotations

from typing import Protocol

import psycopg2
from psycopg2.extensions import POLL_OK, POLL_READ, POLL_WRITE, connection


class WaitTimeout(psycopg2.OperationalError):
    """A single wait for PostgreSQL took longer than the callback's *timeout*.

    psycopg2 closes the connection, as it does whenever a wait callback raises.

    This is not a `TimeoutError`: Python refuses a class that derives from both
    (their instances are laid out differently in memory), and an application
    on psycopg2 handles database errors.
    """


class SocketWait(Protocol):
    """How a framework waits for one socket."""

    def __call__(self, fd: int, *, write: bool, timeout: float | None) -> None:
        """Return once *fd* can be read (or written, if *write*) without blocking.

        Raise `WaitTimeout` after *timeout* seconds; ``None`` is no limit.
        """


def wait(conn: connection, wait_socket: SocketWait, timeout: float | None) -> None:
    """Poll *conn* until it is ready, waiting with *wait_socket* in between.

    *timeout* limits each single wait, in seconds; ``None`` or a negative
    number is no limit. Raise `psycopg2.OperationalError` on a poll state that
    is not psycopg2's.
    """
    if timeout is not None and timeout < 0:
        timeout = None
    while (state := conn.poll()) != POLL_OK:
        if state != POLL_READ and state != POLL_WRITE:
            msg = f"unknown state from connection.poll(): {state!r}"
            raise psycopg2.OperationalError(msg)
        # Ask for the descriptor each time: while it connects, libpq may move on
        # to another socket (the next host, or plain text after refused SSL).
        wait_socket(conn.fileno(), write=state == POLL_WRITE, timeout=timeout)


def timed_out(timeout: float) -> WaitTimeout:
    """Return the error for a wait that took longer than *timeout* seconds."""
    return WaitTimeout(f"wait timed out: PostgreSQL was silent for {timeout:g} seconds")
