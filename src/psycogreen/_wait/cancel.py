"""Cancel a query on the server, after its wait was interrupted or on request."""

from __future__ import annotations

import atexit
import ctypes
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from psycogreen._errors import WaitTimeout
from psycogreen._wait import forks, offload
from psycogreen._wait.libpq import pgconn, waiting_libpq
from psycogreen._wait.native import original
from psycogreen._wait.stats import logger, totals

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from psycogreen._wait.native import SocketWait

T = TypeVar("T")

CANCEL_WAIT = 1.0
"""The longest time, in seconds, that an interrupted wait goes on for its cancel request,
and that the end of the process waits for requests that are under way."""

enabled = True
"""Whether to cancel interrupted queries: patch_psycopg()'s *cancel_interrupted*."""

_under_way: set[object] = set()


def cancel(
    conn: connection, wait_socket: SocketWait, interruption: BaseException
) -> None:
    """Ask the server to end the query that *conn* is waiting for.

    Wait until the server has accepted the request, but at most `CANCEL_WAIT` seconds:
    psycopg2 closes the connection next, and a connection pooler such as PgBouncer
    ignores a request that comes after that.

    After a kill it does not wait. eventlet's kill() returns to the killer as soon as
    the killed greenlet waits for anything. If the killer then closes the connection,
    whose lock psycopg2 holds for the killed greenlet, the whole process deadlocks.

    Errors are logged, not raised: they must not replace the exception that interrupted
    the query. An asynchronous connection is not touched: the application cancels its
    query or goes on with it.
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
        request.log(f"the server has not accepted the request within {CANCEL_WAIT:g} s")
    except Exception as ex:  # noqa: BLE001
        logger.warning("cannot cancel an interrupted query: %s", ex)


def _is_kill(interruption: BaseException) -> bool:
    # By name: under uWSGI greenlet may not be installed.
    names = [base.__name__ for base in type(interruption).__mro__]
    return "GreenletExit" in names


class CancelRequest:
    """A cancel request, sent by libpq's functions through ctypes, which releases the GIL.

    psycopg2's `connection.cancel()` keeps the GIL while it waits for the network: if the
    server does not answer, the whole process stands still, whichever thread called it.
    """

    def __init__(self, conn: connection) -> None:
        """Copy the data from *conn*, which may be closed at any time afterwards."""
        info = conn.info
        self._backend = (info.backend_pid, info.host, info.port)
        self._libpq = waiting_libpq()
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
        """Send the request and block until the server has accepted it.

        Return the error, or an empty string.
        """
        error = ctypes.create_string_buffer(256)  # PQcancel()'s recommended size
        try:
            if self._libpq.PQcancel(self._request, error, len(error)):
                totals.cancelled += 1
                return ""
            return error.value.decode(errors="replace") or "unknown error"
        finally:
            self.drop()

    def drop(self) -> None:
        """Free libpq's structure for the request."""
        self._libpq.PQfreeCancel(self._request)
        _under_way.discard(self)

    def send_or_log(self) -> None:
        """Send the request as `send` does, and log the error if there is one."""
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
    """Wait for the requests that are under way before the process ends."""
    end = time.monotonic() + CANCEL_WAIT
    while _under_way and time.monotonic() < end:
        original("time", "sleep")(0.005)


@forks.after_in_child
def _after_fork() -> None:
    """Forget the requests, whose threads are the parent's."""
    _under_way.clear()
