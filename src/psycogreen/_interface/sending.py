"""How libpq sends a statement: as suits the way in which psycopg2 waits now.

psycopg2 chooses when it connects whether libpq may block. A connection that was opened
while psycopg2 blocked would stop the loop until the server has taken a large statement.
One that was opened with a wait callback costs much CPU where psycopg2 blocks. So this is
chosen again at a connection's first use, and at its first one after psycopg2's way of
waiting has changed.
"""

from __future__ import annotations

import _socket
from weakref import KeyedRef

from psycopg2.extensions import connection, get_wait_callback

from psycogreen._interface import blocking, turns
from psycogreen._interface.libpq import library

BUFFER = 8 * 1024 * 1024
"""Bytes that a unix socket takes at once, if the system lets it. Each time that the socket
takes a part of a statement, libpq moves all the rest of it in memory."""

_known: dict[int, KeyedRef[int, connection]] = {}
"""The connections that have been fitted and live, by `id`."""

_fit: set[int] = set()
"""Those of them that are as psycopg2 waits now."""


def fit(conn: connection) -> None:
    """Let libpq block while it sends on *conn*, or not, as psycopg2 does now.

    Called with the turn on *conn*: no statement is under way. It may be called more often
    than needed.
    """
    number = id(conn)
    if number in _fit or conn.closed or conn.async_:
        return
    if number not in _known:
        _known[number] = KeyedRef(conn, _forget, number)
        if (conn.info.host or "").startswith(("/", "@")):
            _enlarge_buffer(conn.fileno())
    # Noted first: `_unfit_all` may be called meanwhile.
    _fit.add(number)
    library().PQsetnonblocking(conn.pgconn_ptr, get_wait_callback() is not None)


def _enlarge_buffer(fd: int) -> None:
    # The type in C, which no framework patches.
    socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)
    try:
        socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, BUFFER)
    except OSError:
        pass  # it was closed, which the statement will tell
    finally:
        socket.detach()


def _forget(reference: KeyedRef[int, connection]) -> None:
    """Forget a connection that is no more: another one may have its number."""
    number = reference.key
    _known.pop(number, None)
    _fit.discard(number)
    turns.unfit(number)


def _unfit_all() -> None:
    _fit.clear()
    turns.unfit()


blocking.on_change.append(_unfit_all)
