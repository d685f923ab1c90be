"""Whose turn it is on a connection, in Python. Its twin in C is _turns.c.

Other native threads, signal handlers and destructors may run between any two lines.
So each change of what they see is a single operation of a dictionary or a list.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from psycogreen._wait import native

if TYPE_CHECKING:
    from psycopg2.extensions import connection

_ONE = (1).to_bytes(8, sys.byteorder)
"""What an eventfd takes. A pipe takes anything."""


class _Waiter:
    """One that waits for its turn."""

    __slots__ = ("bell", "caller")

    def __init__(self, caller: object, bell: int) -> None:
        self.caller = caller
        self.bell = bell

    def wake(self) -> None:
        # It may be closed by now: another thread's waiter has left by itself.
        with contextlib.suppress(OSError):
            native.original("os", "write")(self.bell, _ONE)


_turns: dict[int, list[Any]] = {}
"""The turns that somebody has, by the connection's `id`: it is held meanwhile. A turn is
a list, which is made for each query: its owner, then each `_Waiter`."""

_on_taken: Callable[[connection, bool], None]
_caller: Callable[[], object]

try:
    from greenlet import getcurrent as _greenlet
except ModuleNotFoundError:  # under uWSGI's uGreen, which has numbers
    _greenlet = native.original("_thread", "get_ident")


def configure(
    on_taken: Callable[[connection, bool], None],
    identify: Callable[[], int] | None = None,
) -> None:
    """Set what is called when a turn is to be taken that somebody has.

    It is called with the connection, and whether the turn is the caller's. It waits for
    the turn, or raises. *identify* returns a number for who calls, where that is not a
    greenlet.
    """
    global _on_taken, _caller
    _on_taken = on_taken
    _caller = identify or _greenlet


def take(conn: connection) -> bool:
    """Take the turn on *conn*, once it is free; return whether to give it back.

    That is not to be done if it was the caller's already.
    """
    mine = [_caller()]
    turn = _turns.setdefault(id(conn), mine)
    if turn is mine:
        return True
    is_mine = turn[0] == mine[0]
    _on_taken(conn, is_mine)
    return not is_mine


def give(conn: connection) -> None:
    """Give the turn back, unless it is another's: a fork has forgotten it."""
    turn = _turns.get(id(conn))
    if turn is None or turn[0] != _caller():
        return
    if len(turn) == 1:
        del _turns[id(conn)]
        # Another thread may have come in between: it has to look again.
        for late in turn[1:]:
            late.wake()
    else:
        first = turn[1]
        turn[:2] = [first.caller]
        first.wake()


def enqueue(conn: connection, bell: int) -> bool:
    """Return whether it is the caller's turn on *conn*; it is if it was nobody's.

    If not, the caller is in the queue from now on. *bell* is written to when it has to
    look again.
    """
    me = _caller()
    while True:
        turn = _turns.setdefault(id(conn), [me])
        if turn[0] == me:
            return True
        if me not in [waiter.caller for waiter in turn[1:]]:
            turn.append(_Waiter(me, bell))
        # It may have ended in between, with the queue still empty.
        if _turns.get(id(conn)) is turn:
            return False


def dequeue(conn: connection) -> None:
    """Leave the queue for the turn on *conn*; give back the turn if it has come."""
    me = _caller()
    turn = _turns.get(id(conn), [])
    for waiter in turn[1:]:
        if waiter.caller == me:
            with contextlib.suppress(ValueError):  # it has come meanwhile
                turn.remove(waiter)
                return
    give(conn)


def queued() -> int:
    """Return how many greenlets and threads wait for their turn."""
    return sum(len(turn) - 1 for turn in tuple(_turns.values()))


def forget() -> None:
    """Forget all turns and queues, in a child that was just forked."""
    _turns.clear()


def taking_turn(cls: type, name: str, original: object, on_error: object) -> None:
    """Know no method: what is in Python is written once, see `sharing`."""
