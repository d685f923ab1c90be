"""Turns on a connection: who uses it, and who waits for that.

psycopg2 holds a connection's lock for the whole of a query. The lock is a native one:
a greenlet that waits for it stops its thread, and with it the greenlet that makes the
query. So whatever takes the lock takes the connection's turn first, which a greenlet
can wait for. A turn lasts from the call of a method to its return; who waits for it is
given it by the one that ends it, first come first served. It belongs to a greenlet, or
to a native thread, which may take it again while it has it.

What a turn costs while nobody waits for it is in `_turns` (C) and `turns_pure`, the
twin in Python. The wait is here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_ACTIVE, connection, cursor

from psycogreen._wait import forks, native

if TYPE_CHECKING:
    from types import ModuleType

    from psycogreen._wait.native import SocketWait

OnError = Callable[[cursor, BaseException], None]

SELF = (
    "cannot use the connection during a query of the same greenlet, which would wait "
    "for itself"
)
IN_HUB = (
    "cannot wait in the hub for a connection that is in use: what the loop itself calls "
    "must not block; spawn a greenlet for it"
)


def _load() -> ModuleType:
    """Return the twin that is to be used: ``PSYCOGREEN_PURE=1`` forces Python."""
    if not os.environ.get("PSYCOGREEN_PURE"):
        with contextlib.suppress(ImportError):
            return import_module("psycogreen._interface._turns")
    return import_module("psycogreen._interface.turns_pure")


_twin: Any = _load()

take: Callable[[connection], bool] = _twin.take
"""Take the turn on a connection, once it is free; return whether the caller has to give
it back, which it has not if it had it already. Raise `psycopg2.ProgrammingError` in the
hub if it is not free, and if the caller is in a query on the connection itself."""

give: Callable[[connection], None] = _twin.give
"""Give it back; nothing if it is not the caller's."""

queued: Callable[[], int] = _twin.queued
"""Return how many greenlets and threads wait for their turn."""

taking_turn: Callable[[type, str, Any, OnError], Any] = _twin.taking_turn
"""Return a descriptor that takes the turn for a method of the cursor's type, or
``None`` for a method that is not known to the twin. What the method raises is told to
the last argument."""

_wait_socket: SocketWait
_in_hub: Callable[[], bool]


def configure(
    wait_socket: SocketWait,
    in_hub: Callable[[], bool],
    identify: Callable[[], int] | None = None,
) -> None:
    """Wait for turns with *wait_socket* from now on, except where *in_hub* is true.

    *identify* returns a number for who calls, where that is not a greenlet.
    """
    global _wait_socket, _in_hub
    _wait_socket = wait_socket
    _in_hub = in_hub
    _twin.configure(_on_taken, identify)


def _on_taken(conn: connection, mine: bool) -> None:
    """Wait for a turn that somebody has, or raise if the wait could not end.

    What psycopg2 calls before a query, to adapt the arguments, may use the connection
    itself. What it calls during a query may not: that is a destructor or a signal
    handler that runs in the wait, or the file of a COPY.
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
    """Wait for the turn on *conn*. Whatever interrupts the wait leaves the queue."""
    with _bell() as (reader, writer):
        try:
            while not _twin.enqueue(conn, writer):
                _wait_socket(reader, write=False, timeout=None)
                native.original("os", "read")(reader, 8)
        except BaseException:
            _twin.dequeue(conn)
            raise


@contextmanager
def _bell() -> Iterator[tuple[int, int]]:
    """Make what wakes one that waits, in whatever thread: the two ends of it.

    An eventfd, where there is one: it is both ends in one descriptor.
    """
    if hasattr(os, "eventfd"):
        reader = writer = os.eventfd(0, os.EFD_CLOEXEC)
    else:
        reader, writer = os.pipe()
    try:
        yield reader, writer
    finally:
        os.close(reader)
        if writer != reader:
            os.close(writer)


forks.after_in_child(_twin.forget)
