"""Waits on a connection in which another function polls in place of ``poll()``.

psycopg2 does not know of these waits, so this module closes the connection if one fails.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from psycopg2.extensions import POLL_OK, POLL_WRITE, connection, get_wait_callback

from psycogreen._wait import native, twin

# psycopg2's own method: its replacement refuses to run during a query.
_close = connection.close


def wait(conn: connection, poll: Callable[[], int]) -> None:
    """Wait until *poll* returns ``POLL_OK``.

    The caller has the turn on *conn*. If the wait ends by an exception, close *conn*, as
    psycopg2 does: the answer may still come. Block if there is no wait callback.
    """
    callback: Any = get_wait_callback() or _block
    twin.polls[id(conn)] = poll
    try:
        callback(conn)
    except BaseException:
        _close(conn)
        raise
    finally:
        del twin.polls[id(conn)]


def _block(conn: connection) -> None:
    poll = twin.polls[id(conn)]
    while (state := poll()) != POLL_OK:
        native.wait_socket(conn.fileno(), write=state == POLL_WRITE, timeout=None)
