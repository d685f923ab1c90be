"""The loop that drives ``connection.poll()``, written once for every framework."""

from __future__ import annotations

from typing import Protocol

import psycopg2
from psycopg2.extensions import (
    POLL_OK,
    POLL_READ,
    POLL_WRITE,
    STATUS_READY,
    connection,
)

from psycogreen._cancel import cancel
from psycogreen._deadline import STATUS_CONNECTING, ConnectWait
from psycogreen._stats import begin, is_interruption, note_interruption, under_way


class SocketWait(Protocol):
    """How a framework waits for one socket."""

    def __call__(self, fd: int, *, write: bool, timeout: float | None) -> None:
        """Return once *fd* can be read (or written, if *write*) without blocking.

        Raise `WaitTimeout` after *timeout* seconds; ``None`` is no limit.
        """


def wait(conn: connection, wait_socket: SocketWait, timeout: float | None) -> None:
    """Poll *conn* until it is ready, waiting with *wait_socket* in between.

    *timeout* limits each single wait, in seconds; ``None`` or a negative
    number is no limit. While it connects, libpq's ``connect_timeout`` limits it
    as well. A query whose wait is interrupted is cancelled on the server; then
    what interrupted it goes on its way.
    """
    if timeout is not None and timeout < 0:
        timeout = None
    under_way[conn] = begin()
    try:
        # What only poll() is asked of is no less of a connection.
        if getattr(conn, "status", STATUS_READY) in STATUS_CONNECTING:
            _wait_connected(conn, ConnectWait(conn, wait_socket), timeout)
        else:
            _wait_answered(conn, wait_socket, timeout)
    finally:
        # pop() would cost more. It is gone already if a fork has forgotten it, or if
        # somebody else waits for the same asynchronous connection.
        try:  # noqa: SIM105
            del under_way[conn]
        except KeyError:
            pass


def _wait_answered(
    conn: connection, wait_socket: SocketWait, timeout: float | None
) -> None:
    try:
        _poll(conn, wait_socket, timeout)
    except BaseException as ex:
        if is_interruption(ex):
            note_interruption(conn, ex)
            cancel(conn, wait_socket, ex)
        raise


def _wait_connected(
    conn: connection, wait_socket: ConnectWait, timeout: float | None
) -> None:
    try:
        _poll(conn, wait_socket, timeout)
    except BaseException as ex:
        if is_interruption(ex):
            note_interruption(conn, ex)
        if isinstance(ex, psycopg2.OperationalError):
            wait_socket.complete(ex)
        # psycopg2 leaves the socket open until the connection is collected, and
        # the traceback may keep it for long.
        if not conn.async_:
            conn.close()
        raise


def _poll(conn: connection, wait_socket: SocketWait, timeout: float | None) -> None:
    while (state := conn.poll()) != POLL_OK:
        if state != POLL_READ and state != POLL_WRITE:
            msg = f"unknown state from connection.poll(): {state!r}"
            raise psycopg2.OperationalError(msg)
        # Ask for the descriptor each time: while it connects, libpq may move on
        # to another socket (the next host, or plain text after refused SSL).
        wait_socket(conn.fileno(), write=state == POLL_WRITE, timeout=timeout)
