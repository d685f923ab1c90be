"""How libpq sends a statement: as suits the way in which psycopg2 waits now.

psycopg2 chooses when it connects whether libpq may block. A connection that was opened
while psycopg2 blocked would stop the loop until the server has taken a large statement.
One that was opened with a wait callback costs much CPU where psycopg2 blocks. So this is
chosen again at a connection's first use, and at its first one after psycopg2's way of
waiting has changed.
"""

from __future__ import annotations

import _socket
from weakref import ref

from psycopg2.extensions import connection, get_wait_callback

from psycogreen._interface import blocking, turns
from psycogreen._interface.libpq import library
from psycogreen._wait.twin import entries

BUFFER = 8 * 1024 * 1024
"""Bytes that a unix socket takes at once, if the system lets it. Each time that the socket
takes a part of a statement, libpq moves all the rest of it in memory."""

_SO_DOMAIN = 39
"""Tells the family of a socket, on Linux. The module `socket` has no name for it."""


class _Reference(ref):  # type: ignore[type-arg]
    """A weak reference to a connection, with its `id`."""

    __slots__ = ("number",)
    number: int


_known: dict[int, _Reference] = {}
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
    waits = get_wait_callback() is not None
    is_right = False
    if number not in _known:
        reference = _known[number] = _Reference(conn, _forget)
        reference.number = number
        fd = conn.fileno()
        if fd >= 0:  # it is negative if connecting has failed
            _enlarge_buffer(fd)
        # It has waited before its first turn: it was opened with a wait callback.
        entry = entries.get(fd)
        is_right = waits and entry is not None and entry.conn() is conn
    # Noted first: `_unfit_all` may be called meanwhile.
    _fit.add(number)
    if not is_right:
        library().PQsetnonblocking(conn.pgconn_ptr, waits)


def _enlarge_buffer(fd: int) -> None:
    """Enlarge the buffer of *fd* if it is a unix socket."""
    # The type in C, which no framework patches. To ask the kernel costs less than to ask
    # the connection for its host.
    socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)
    try:
        if socket.getsockopt(_socket.SOL_SOCKET, _SO_DOMAIN) == _socket.AF_UNIX:
            socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, BUFFER)
    except OSError:
        pass  # it was closed, which the statement will tell
    finally:
        socket.detach()


def _forget(reference: _Reference) -> None:
    """Forget a connection that is no more: another one may have its number."""
    number = reference.number
    _known.pop(number, None)
    _fit.discard(number)
    turns.unfit(number)


def _unfit_all() -> None:
    _fit.clear()
    turns.unfit()


blocking.on_change.append(_unfit_all)
