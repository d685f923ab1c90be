"""Ending a query on the server: when its wait was interrupted here, or on request."""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from psycogreen._errors import WaitTimeout
from psycogreen._wait import forks, offload
from psycogreen._wait.libpq import libpq, pgconn
from psycogreen._wait.native import original
from psycogreen._wait.stats import logger, totals

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from psycogreen._wait.native import SocketWait

T = TypeVar("T")

CANCEL_WAIT = 1.0
"""Seconds that an interrupted wait goes on for its cancel request, at the most;
so long, too, waits the end of the process for requests that are under way."""

enabled = True
"""Whether to cancel at all: patch_psycopg()'s *cancel_interrupted*."""

_under_way: set[object] = set()


def cancel(
    conn: connection, wait_socket: SocketWait, interruption: BaseException
) -> None:
    """Ask the server to end the query that *conn* is waiting for.

    Waits until the server has taken the request, but no longer than
    `CANCEL_WAIT`: psycopg2 closes the connection next, and a connection pooler
    such as PgBouncer ignores a request that comes after that.

    A kill is not made to wait. eventlet's returns to the killer as soon as the
    killed greenlet waits for anything; if the killer then closes the connection,
    whose lock psycopg2 holds for the killed one, the whole process stands still.

    What goes wrong is logged: it must not take the place of what interrupted the
    query. An asynchronous connection is its application's to cancel or go on with.
    """
    if not enabled:
        return
    try:
        if conn.async_:
            return
        request = CancelRequest(conn)
        sent = request.start(request.send_or_log)
        if not _is_kill(interruption):
            sent.wait(wait_socket, CANCEL_WAIT)
    except WaitTimeout:
        request.log(f"the server has not taken it within {CANCEL_WAIT:g} s")
    except Exception as ex:  # noqa: BLE001
        logger.warning("cannot cancel an interrupted query: %s", ex)


def _is_kill(interruption: BaseException) -> bool:
    # By name: greenlet may not be there at all, under uWSGI.
    names = [base.__name__ for base in type(interruption).__mro__]
    return "GreenletExit" in names


class CancelRequest:
    """A cancel request, by libpq's own functions.

    Not `connection.cancel()`, which keeps the GIL all the while that it waits
    for the network: with a silent server, from whatever thread it is called, the
    whole process stands still. ctypes lets the GIL go.
    """

    def __init__(self, conn: connection) -> None:
        """Take what is needed from *conn*, which may be closed at any time after."""
        info = conn.info
        self._backend = (info.backend_pid, info.host, info.port)
        self._libpq = libpq()
        self._request = self._libpq.PQgetCancel(pgconn(conn))
        _under_way.add(self)

    def start(self, send: Callable[[], T]) -> offload.Call[T]:
        """Call *send*, one of the methods below, in a native thread."""
        call = offload.Call(send)
        try:
            offload.start(call.run)
        except BaseException:
            self.drop()
            raise
        return call

    def send(self) -> str:
        """Send the request and wait for the server to take it; blocks.

        Return what went wrong, or nothing.
        """
        import ctypes

        error = ctypes.create_string_buffer(256)  # PQcancel()'s recommended size
        try:
            if self._libpq.PQcancel(self._request, error, len(error)):
                totals.cancelled += 1
                return ""
            return error.value.decode(errors="replace") or "unknown error"
        finally:
            self.drop()

    def drop(self) -> None:
        """Free what libpq has allocated for it."""
        self._libpq.PQfreeCancel(self._request)
        _under_way.discard(self)

    def send_or_log(self) -> None:
        """Do the same, and log what went wrong."""
        if reason := self.send():
            self.log(reason.strip())

    def log(self, reason: str) -> None:
        """Log why the query may still be running."""
        logger.warning(
            "cannot cancel the interrupted query of backend %d at %s port %d: %s",
            *self._backend,
            reason,
        )


@atexit.register
def _await_requests() -> None:
    """Let requests that are under way get out before the process ends."""
    end = time.monotonic() + CANCEL_WAIT
    while _under_way and time.monotonic() < end:
        original("time", "sleep")(0.005)


@forks.after_in_child
def _after_fork() -> None:
    """Forget the requests, whose threads are the parent's."""
    _under_way.clear()
