"""The turns on connections, in Python. Its twin in C is _turns.c.

Every query takes a turn, so the methods that are called most are closures, which pass
their arguments without packing them. That of a query takes and gives a free turn itself.

Other native threads, signal handlers and destructors may run between any two lines. So
each change of shared state is a single operation of a dictionary or a list.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

from psycopg2.extensions import connection, cursor, lobject

from psycogreen._interface.members import clear_first_object, first_object
from psycogreen._wait import native
from psycogreen._wait.bell import ring

Method = Callable[..., Any]
OnError = Callable[[Any, BaseException], None]

OF_CONNECTION, OF_CURSOR, OF_NAMED_CURSOR = range(3)

# The base type's descriptors: psycopg2 does not use a subclass's attributes.
_connection_of = vars(cursor)["connection"].__get__
_name_of = vars(cursor)["name"].__get__


class _Waiter:
    """A greenlet or thread that waits for its turn."""

    __slots__ = ("bell", "caller")

    def __init__(self, caller: object, bell: int) -> None:
        self.caller = caller
        self.bell = bell

    def wake(self) -> None:
        # It may be closed already, if a waiter in another thread has left the queue.
        with contextlib.suppress(OSError):
            ring(self.bell)


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
    connection at its first turn, and at the first after `unfit`, but not for a turn that
    a method of the connection itself takes. *identify* returns a number for the caller
    where that is not a greenlet.
    """
    global _on_taken, _call_fit, _caller
    _on_taken = on_taken
    _call_fit = fit
    _caller = identify or _greenlet


def take(conn: connection, *, fits: bool = True) -> None:
    """Take the turn on *conn*; wait until it is free. The caller may have it already.

    Call *fit* of `configure` only if *fits*.
    """
    mine = [_me()]
    number = id(conn)
    turn = _turns.setdefault(number, mine)
    if turn is not mine:
        _on_taken(conn, turn[0] == mine[0])
    elif fits and number not in _fit:
        _make_fit(conn)


def has(conn: connection) -> bool:
    """Return whether the caller has the turn on *conn*."""
    turn = _turns.get(id(conn))
    return turn is not None and turn[0] == _me()


def _me() -> object:
    try:
        return _caller()
    except RuntimeError:
        return _caller_at_exit()


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
        if len(turn) > 1:
            _wake_late(turn)
    else:
        first = turn[1]
        turn[:2] = [first.caller]
        first.wake()


def _wake_late(turn: list[Any]) -> None:
    """Wake the threads that joined the queue of a turn while it ended."""
    for late in turn[1:]:
        late.wake()


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


def _execute(original: Method, on_error: OnError, slow: Method) -> Method:
    turns, take_if_free, fit = _turns, _turns.setdefault, _fit

    @functools.wraps(original)
    def execute(self: cursor, query: Any, vars: Any = None) -> Any:  # noqa: ANN401
        conn = _connection_of(self)
        number = id(conn)
        try:
            me = _caller()
        except RuntimeError:  # while Python ends, see _me()
            return slow(self, query, vars)
        mine = [me]
        if number not in fit:  # nor is None, if the cursor is not initialised
            return slow(self, query, vars)
        try:
            if take_if_free(number, mine) is not mine:
                return slow(self, query, vars)
            try:
                return original(self, query, vars)
            except BaseException as ex:
                on_error(self, ex)
                raise
        finally:
            # A signal handler may raise after each call, so there is none before the turn
            # is free. A fork may have removed it, and another greenlet taken the turn.
            if number in turns and turns[number] is mine:
                if mine[-1] is not me:
                    give(conn)
                else:
                    del turns[number]
                    if mine[-1] is not me:
                        _wake_late(mine)

    return execute


def _unless_named(original: Method, slow: Method) -> Method:
    """Return a method without arguments that takes the turn of a named cursor only."""

    @functools.wraps(original)
    def method(self: cursor) -> Any:  # noqa: ANN401
        return original(self) if _name_of(self) is None else slow(self)

    return method


_WITHOUT_ARGUMENTS = ("__next__", "close", "fetchall", "fetchone")


def taking_turn(
    original: Method, whose: int, on_error: OnError, slow: Method
) -> Method:
    """Return a function that takes the turn and then does what *original* does.

    *on_error* is called with the object and the exception of *original*, before the turn
    is given back. *slow* is a function that does the same, and is returned itself for a
    method that is not called often.
    """
    name = original.__name__
    if whose == OF_CURSOR and name == "execute":
        return _execute(original, on_error, slow)
    if whose == OF_NAMED_CURSOR and name in _WITHOUT_ARGUMENTS:
        return _unless_named(original, slow)
    return slow


def guarded(factory: Any) -> Any:  # noqa: ANN401
    """Return a factory of large objects that do not wait when they are destroyed.

    psycopg2's destructor closes a large object, and takes the connection's lock for that,
    wherever the last reference goes. Only a subclass of psycopg2's class, *factory* or
    the one made here, can prevent that.
    """
    is_class = isinstance(factory, type) and issubclass(factory, lobject)
    return _guarded_class(factory) if is_class else factory


@functools.cache
def _guarded_class(base: Any) -> Any:  # noqa: ANN401
    class Guarded(base):  # type: ignore[misc]
        __slots__ = ()

        def __del__(self) -> None:
            if hasattr(super(), "__del__"):
                super().__del__()
            # If somebody has the turn, and so may have the lock, psycopg2 must not close
            # it. The server does, when the transaction ends.
            conn = first_object(self)
            if conn is not None and id(conn) in _turns:
                clear_first_object(self)  # without a connection, psycopg2 does nothing

    for name in "__name__", "__qualname__", "__module__", "__doc__":
        setattr(Guarded, name, getattr(base, name))
    return Guarded
