"""``connection.cancel()`` in a native thread.

psycopg2's own method holds the GIL until the server accepts the request. If the server
does not answer, the whole process stands still.
"""

from __future__ import annotations

from collections.abc import Callable

import psycopg2
from psycopg2.extensions import STATUS_PREPARED, connection

from psycogreen._interface.replacing import method
from psycogreen._wait.cancel import CancelRequest
from psycogreen._wait.deadline import STATUS_CONNECTING
from psycogreen._wait.native import SocketWait

_wait_socket: SocketWait | None
"""The framework's wait; ``None`` if no native thread runs during it."""

_in_hub: Callable[[], bool]


def configure(wait_socket: SocketWait | None, in_hub: Callable[[], bool]) -> None:
    """Set the wait for the server to accept a request; ``None`` is to block.

    If *in_hub* returns true, `_cancel` does not wait.
    """
    global _wait_socket, _in_hub
    _wait_socket = wait_socket
    _in_hub = in_hub


@method(connection, "cancel")
def _cancel(original: Callable[[connection], None], self: connection) -> None:
    """Ask the server to cancel the query, and let other greenlets run meanwhile.

    In the hub, which must not wait, send the request and return; log an error.
    """
    if (
        _wait_socket is None
        or self.closed
        or self.status in (*STATUS_CONNECTING, STATUS_PREPARED)
    ):
        original(self)  # raises an error, unless it must block
        return
    request = CancelRequest(self)
    if _in_hub():
        request.start(request.send_or_log)
    elif error := request.start(request.send).wait(_wait_socket):
        raise psycopg2.OperationalError(error)


REPLACEMENTS = [_cancel]
