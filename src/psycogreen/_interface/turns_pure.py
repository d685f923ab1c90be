"""The turns on connections, in Python. Its twin in C is _turns.c.

Other native threads, signal handlers and destructors may run between any two lines. So
each change of shared state is a single operation of a dictionary or a list.
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
"""An increment for an eventfd. A pipe accepts any bytes."""


class _Waiter:
    """A greenlet or thread that waits for its turn."""

    __slots__ = ("bell", "caller")

    def __init__(self, caller: object, bell: int) -> None:
        self.caller = caller
        self.bell = bell

    def wake(self) -> None:
        # It may be closed already, if a waiter in another thread has left the queue.
        with contextlib.suppress(OSError):
            native.original("os", "write")(self.bell, _ONE)


_turns: dict[int, list[Any]] = {}
"""The turns in use, by the `id` of the connection, which lives meanwhile. A turn is a
list, made for each query: its owner, then each `_Waiter`."""

_fit: set[int] = set()
"""The connections, by their `id`, for which `configure`'s *fit* was called."""

_on_taken: Callable[[connection, bool], None]
_call_fit: Callable[[connection], None]
_caller: Callable[[], object]

try:
    from greenlet import getcurrent as _greenlet
except ModuleNotFoundError:  # under uWSGI's uGreen, which identifies callers by number
    _greenlet = native.original("_thread", "get_ident")


def configure(
    on_taken: Callable[[connection, bool], None],
    fit: Callable[[connection], None],
    identify: Callable[[], int] | None = None,
) -> None:
    """Set the functions that `take` uses.

    *on_taken* is called if the turn is not free: with the connection, and whether the
    caller has the turn itself. It waits for the turn, or raises. *fit* is called with a
    connection at its first turn, and at the first after `unfit`. *identify* returns a
    number for the caller where that is not a greenlet.
    """
    global _on_taken, _call_fit, _caller
    _on_taken = on_taken
    _call_fit = fit
    _caller = identify or _greenlet


def take(conn: connection) -> bool:
    """Take the turn on *conn*; wait until it is free.

    Return ``True`` if the caller must give it back, ``False`` if it had the turn already.
    """
    try:
        mine = [_caller()]
    except RuntimeError:
        mine = [_caller_at_exit()]
    number = id(conn)
    turn = _turns.setdefault(number, mine)
    if turn is mine:
        if number not in _fit:
            _make_fit(conn)
        return True
    is_mine = turn[0] == mine[0]
    _on_taken(conn, is_mine)
    return not is_mine


def _caller_at_exit() -> object:
    """Identify callers by their thread from now on, and return this one.

    greenlet cannot tell them while Python ends, when only destructors run.
    """
    global _caller
    _caller = native.original("_thread", "get_ident")
    return _caller()


def _make_fit(conn: connection) -> None:
    # Add it first: `unfit` may be called meanwhile.
    _fit.add(id(conn))
    try:
        _call_fit(conn)
    except BaseException:
        give(conn)
        raise


def unfit(number: int | None = None) -> None:
    """Call *fit* at the next turn on the connection of that `id`, or on each."""
    if number is None:
        _fit.clear()
    else:
        _fit.discard(number)


def give(conn: connection) -> None:
    """Give the turn back. Do nothing if it is not the caller's, as after a fork."""
    number = id(conn)
    turn = _turns.get(number)
    if turn is None:
        return
    owner, me = turn[0], _caller()
    if owner is not me and owner != me:  # numbers need not be identical
        return
    if len(turn) == 1:
        del _turns[number]
        # Another thread may have joined the queue meanwhile: it must try again.
        if len(turn) > 1:
            for late in turn[1:]:
                late.wake()
    else:
        first = turn[1]
        turn[:2] = [first.caller]
        first.wake()


def enqueue(conn: connection, bell: int) -> bool:
    """Take the turn on *conn* if it is free; return whether the caller has it.

    Otherwise put the caller into the queue. The descriptor *bell* is written to when the
    caller must call this again.
    """
    me = _caller()
    while True:
        turn = _turns.setdefault(id(conn), [me])
        if turn[0] == me:
            return True
        if me not in [waiter.caller for waiter in turn[1:]]:
            turn.append(_Waiter(me, bell))
        # The turn may have ended before the caller was in the queue.
        if _turns.get(id(conn)) is turn:
            return False


def dequeue(conn: connection) -> None:
    """Leave the queue for the turn on *conn*; if the caller has it, give it back."""
    me = _caller()
    turn = _turns.get(id(conn), [])
    for waiter in turn[1:]:
        if waiter.caller == me:
            with contextlib.suppress(ValueError):  # it got the turn meanwhile
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
    """Return ``None``: in Python, `sharing` makes all replacements."""
