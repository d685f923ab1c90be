"""Set whether libpq may block while it sends, to match how psycopg2 waits now.

psycopg2 sets this only when it connects. A connection that was opened in blocking mode
would stop the loop until the server has received a large statement. One that was opened
with a wait callback would cost much CPU in blocking mode. So this module sets it again at
the first statement of a cursor, and at the first after the wait callback was installed or
removed. A connection's own methods, such as `close`, send nothing large.
"""

from __future__ import annotations

import _socket
import sys
from collections.abc import Callable
from weakref import ref

from psycopg2.extensions import connection

from psycogreen._interface import blocking, turns
from psycogreen._wait.libpq import libpq
from psycogreen._wait.twin import entries

BUFFER = 8 * 1024 * 1024
"""The size of a unix socket's send buffer in bytes, if the system allows it. Each time that
the socket accepts a part of a statement, libpq moves the rest in memory."""

_SO_DOMAIN = 39
"""Tells the family of a socket, on Linux. The module `socket` has no name for it."""


class _Reference(ref):  # type: ignore[type-arg]
    """A weak reference to a connection, with its `id`."""

    __slots__ = ("number",)
    number: int


_known: dict[int, _Reference] = {}
"""The living connections for which `fit` was called, by `id`."""

_fit: set[int] = set()
"""The ids of those connections that match how psycopg2 waits now."""


def fit(conn: connection) -> None:
    """Make libpq block or not while it sends on *conn*, as psycopg2 waits now.

    The caller has the turn on *conn*, so no statement is under way. Extra calls are
    harmless.
    """
    number = id(conn)
    if number in _fit or conn.closed or conn.async_:
        return
    waits = blocking.waits()
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
    # Add it first: `_unfit_all` may be called meanwhile.
    _fit.add(number)
    if not is_right:
        libpq().PQsetnonblocking(conn.pgconn_ptr, waits)


def _enlarge_buffer(fd: int) -> None:
    """Enlarge the buffer of *fd* if it is a unix socket."""
    # The C type, which no framework patches. Asking the kernel costs less than asking the
    # connection for its host.
    socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)
    try:
        if socket.getsockopt(_socket.SOL_SOCKET, _SO_DOMAIN) == _socket.AF_UNIX:
            socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, BUFFER)
    except OSError:
        pass  # the socket is closed: the statement will fail
    finally:
        socket.detach()


def _forget(
    reference: _Reference, exiting: Callable[[], bool] = sys.is_finalizing
) -> None:
    """Drop a connection that was collected: another one may get its id."""
    if exiting():
        return  # a connection may outlive the names of this module
    number = reference.number
    _known.pop(number, None)
    _fit.discard(number)
    turns.unfit(number)


def _unfit_all() -> None:
    _fit.clear()
    turns.unfit()


blocking.on_change.append(_unfit_all)
