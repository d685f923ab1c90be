"""``connection.cancel()`` in a native thread: psycopg2's own stops the process.

It holds the GIL until the server has taken the request, and a silent one never does.
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
"""How the framework waits; ``None`` if no native thread goes on while it does."""

_in_hub: Callable[[], bool]


def configure(wait_socket: SocketWait | None, in_hub: Callable[[], bool]) -> None:
    """Wait with *wait_socket* for the server to take a request; ``None``: block.

    Where *in_hub* is true, do not wait.
    """
    global _wait_socket, _in_hub
    _wait_socket = wait_socket
    _in_hub = in_hub


@method(connection, "cancel")
def _cancel(original: Callable[[connection], None], self: connection) -> None:
    """Do what psycopg2 does, while other greenlets go on.

    In the loop's own greenlet, which must not wait, send the request and return: what
    goes wrong is logged.
    """
    if (
        _wait_socket is None
        or self.closed
        or self.status in (*STATUS_CONNECTING, STATUS_PREPARED)
    ):
        original(self)  # which refuses, unless no native thread goes on
        return
    request = CancelRequest(self)
    if _in_hub():
        request.start(request.send_or_log)
    elif error := request.start(request.send).wait(_wait_socket):
        raise psycopg2.OperationalError(error)


REPLACEMENTS = [_cancel]
