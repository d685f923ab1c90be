"""Turns on a connection: which greenlet or thread uses it, and which ones wait.

psycopg2 holds a connection's lock during a whole query. It is a native lock: a greenlet
that waits for it blocks its thread, and so blocks the greenlet that makes the query.
Therefore a method that takes the lock takes the connection's turn first. A greenlet can
wait for a turn. A turn lasts from the call of a method to its return; then the next one
in the queue gets it, first come, first served. It belongs to a greenlet or to a native
thread, which may take it again while it has it.

`_turns` (C) and `turns_pure`, the twin in Python, have the fast path: a turn that nobody
waits for. The wait is here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_ACTIVE, connection, lobject

from psycogreen._wait import forks, native, twin
from psycogreen._wait.bell import bell

if TYPE_CHECKING:
    from types import ModuleType

    from psycogreen._wait.native import SocketWait

OnError = Callable[[Any, BaseException], None]

SELF = (
    "cannot use the connection during a query of the same greenlet, which would wait "
    "for itself"
)
IN_HUB = (
    "cannot wait in the hub for a connection that is in use: what the loop itself calls "
    "must not block; spawn a greenlet for it"
)


def _load() -> ModuleType:
    """Return the twin to use: in C if the wait is in C too."""
    if twin.compiled:
        with contextlib.suppress(ImportError):
            return import_module("psycogreen._interface._turns")
    return import_module("psycogreen._interface.turns_pure")


_twin: Any = _load()

take: Callable[..., None] = _twin.take
"""Take the turn on a connection; wait until it is free. The caller may have it already.
Call *fit* of `configure` only if *fits*, which is true by default. Raise
`psycopg2.ProgrammingError` if the turn is not free and the caller is the hub, or if the
caller itself is in a query on the connection."""

has: Callable[[connection], bool] = _twin.has
"""Return whether the caller has the turn on a connection. Ask it before `take`: a caller
that had no turn must call `give` in a ``finally`` block around `take`, because a signal
handler may raise right after that."""

give: Callable[[connection], None] = _twin.give
"""Give the turn back. Does nothing if it is not the caller's."""

queued: Callable[[], int] = _twin.queued
"""Return how many greenlets and threads wait for their turn."""

unfit: Callable[..., None] = _twin.unfit
"""Call *fit* of `configure` at the next turn on the connection of that `id`, or on each
connection."""

OF_CONNECTION: int = _twin.OF_CONNECTION
OF_CURSOR: int = _twin.OF_CURSOR
OF_NAMED_CURSOR: int = _twin.OF_NAMED_CURSOR
"""Whose connection's turn a method takes: it is called on the connection, on one of its
cursors, or on a cursor that takes the turn only if it is named."""

taking_turn: Callable[[Any, int, OnError, Callable[..., Any]], Any] = _twin.taking_turn
"""Return a replacement of a method of psycopg2 that takes the turn around it. The second
argument is one of the constants. The third one is called with the object and the method's
exceptions, before the turn is given back. The last one does the same as the replacement,
and is the replacement where the twin has no faster one."""

guarded: Callable[[Callable[..., lobject]], Callable[..., lobject]] = _twin.guarded
"""Return a factory of large objects that do not wait for the connection's lock when they
are destroyed. In C that is the factory itself: psycopg2's destructor is replaced."""

_wait_socket: SocketWait
_in_hub: Callable[[], bool]


def configure(
    wait_socket: SocketWait,
    in_hub: Callable[[], bool],
    fit: Callable[[connection], None],
    identify: Callable[[], int] | None = None,
) -> None:
    """Wait for turns with *wait_socket* from now on, except where *in_hub* is true.

    *fit* is called with a connection at its first turn, and at the first after `unfit`,
    but not for a turn that a method of the connection itself takes. *identify* returns a
    number for the caller where that is not a greenlet.
    """
    global _wait_socket, _in_hub
    _wait_socket = wait_socket
    _in_hub = in_hub
    _twin.configure(_on_taken, fit, identify)


def _on_taken(conn: connection, mine: bool) -> None:
    """Wait for a turn that is not free, or raise if the wait could never end.

    Code that runs before the query is sent, to adapt its arguments, may use the
    connection itself. Code that runs during the query may not: a destructor or a signal
    handler during the wait, or the file of a COPY.
    """
    if mine:
        if _is_in_query(conn):
            raise psycopg2.ProgrammingError(SELF)
    elif _in_hub():
        raise psycopg2.ProgrammingError(IN_HUB)
    else:
        _await_turn(conn)


def _is_in_query(conn: connection) -> bool:
    if conn.closed:
        return False
    return conn.get_transaction_status() == TRANSACTION_STATUS_ACTIVE


def _await_turn(conn: connection) -> None:
    """Wait for the turn on *conn*; leave the queue if the wait is interrupted."""
    with bell() as (reader, writer):
        try:
            while not _twin.enqueue(conn, writer):
                _wait_socket(reader, write=False, timeout=None)
                native.original("os", "read")(reader, 8)
        except BaseException:
            _twin.dequeue(conn)
            raise


forks.after_in_child(_twin.forget)
