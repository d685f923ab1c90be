"""The places of a pool, and the queue of those who wait for one.

A pool has as many places as it may have connections. A place is always somewhere:
it is free, with an idle session or empty; or somebody has it, who uses, opens, or
closes a session. So what is free says what is in use, and none can be lost by a count
that went wrong.

There is no lock. Each step is one operation of a `deque`, which is atomic, and what
another thread may have changed before the next one is looked at again. A lock could
not be held here: a destructor that the garbage collector runs in the middle may give
back a connection itself. A greenlet cannot be killed between two steps, since it does
not wait there.
"""

from __future__ import annotations

import _thread
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from psycogreen._pool.sessions import Session


class Waiter:
    """Somebody in the queue."""

    def __init__(self) -> None:
        """Begin to wait."""
        self.since = time.monotonic()
        self.session: Session | None = None
        self.error: Exception | None = None
        self.served = _thread.allocate_lock()
        self.served.acquire()

    def result(self) -> Session:
        """Return what it was served with, or raise that."""
        if self.error is not None:
            raise self.error
        assert self.session
        return self.session


class Places:
    """A fixed number of places, all empty at first."""

    def __init__(
        self,
        count: int,
        open_session: Callable[[], None],
        discard: Callable[[Session], None],
    ) -> None:
        """Have *count* places.

        *open_session* is called with a place taken for it. It returns at once; when it
        is done, `opened` is called, and the place released. *discard* is called with a
        session that is no longer good; it returns at once, and ends with `release`.
        """
        self._free: deque[Session | None] = deque([None] * count)
        self._waiters: deque[Waiter] = deque()
        self._opening: deque[None] = deque()  # an entry for each session being opened
        self._open_session = open_session
        self._discard = discard
        self._closed: Callable[[], Exception] | None = None

    @property
    def closed(self) -> bool:
        """Whether nobody is served any more."""
        return self._closed is not None

    def idle(self) -> list[Session]:
        """Return the idle sessions, the one that has been idle for longest first."""
        return [place for place in self._free.copy() if place is not None]

    def empty(self) -> int:
        """Return how many places are free, and no connection is there."""
        return self._free.count(None)

    def free(self) -> int:
        """Return how many places nobody has."""
        return len(self._free)

    def waiting_since(self) -> list[float]:
        """Return since when each in the queue has been waiting."""
        return [waiter.since for waiter in self._waiters.copy()]

    def claim(self, place: Session | None) -> bool:
        """Take that idle session, or an empty place; return whether it was free."""
        try:
            self._free.remove(place)
        except ValueError:
            return False
        return True

    def take(self, timeout: float) -> Session | None:
        """Return a session that is alive; ``None`` if *timeout* seconds were too few.

        Those who wait are served in the order in which they came. Raise what opening a
        connection has raised.
        """
        while not self._waiters:
            try:
                session = self._free.pop()
            except IndexError:
                break
            if session is None:
                self._free.appendleft(None)
                break
            if session.is_alive():
                return session
            self._discard(session)
        return self._wait(timeout)

    def _wait(self, timeout: float) -> Session | None:
        waiter = Waiter()
        self._waiters.append(waiter)
        try:
            self._serve()
            in_time = waiter.served.acquire(timeout=timeout)
        except BaseException:
            if not self._leave(waiter) and waiter.session:
                self.release(waiter.session)
            raise
        if not in_time and self._leave(waiter):
            return None
        return waiter.result()

    def _leave(self, waiter: Waiter) -> bool:
        """Leave the queue; return ``False`` if *waiter* has been served meanwhile."""
        try:
            self._waiters.remove(waiter)
        except ValueError:
            waiter.served.acquire()  # another thread may be about to do it
            return False
        return True

    def release(self, session: Session | None) -> None:
        """Give back a place, with a session that is as new or empty."""
        if session is None:
            self._free.appendleft(None)
        else:
            # The one used last is used next: those idle at the other end time out.
            self._free.append(session)
        self._serve()

    def open_one(self) -> bool:
        """Have a session opened; return ``False`` if no place is empty."""
        if not self.claim(None):
            return False
        self._open()
        return True

    def opened(self) -> None:
        """Note that a session is no longer being opened, whatever came of it."""
        self._opening.pop()

    def fail(self, error: Exception) -> bool:
        """Raise *error* at the first in the queue; return whether anybody was there."""
        try:
            waiter = self._waiters.popleft()
        except IndexError:
            return False
        waiter.error = error
        waiter.served.release()
        return True

    def close(self, error: Callable[[], Exception]) -> None:
        """Serve nobody any more: raise an *error* at each who waits, now or later.

        Idle sessions are discarded, and any other one when its place is released.
        """
        self._closed = error
        self._serve()

    def _serve(self) -> None:
        """Hand free sessions to those in the queue; have new ones opened for them."""
        while self._waiters and not self._closed:
            try:
                session = self._free.pop()
            except IndexError:
                break  # the next one who releases a place comes here
            if session is None:
                if not self._open_for_waiters():
                    break
            elif session.is_alive():
                self._hand_over(session)
            else:
                self._discard(session)
        if self._closed:
            self._turn_away(self._closed)

    def _open_for_waiters(self) -> bool:
        """Use an empty place, just taken; return whether that may be worth repeating."""
        if len(self._opening) < len(self._waiters):
            self._open()
            return True
        self._free.appendleft(None)
        # Another thread may have begun to wait before it could see the place.
        return len(self._opening) < len(self._waiters)

    def _open(self) -> None:
        self._opening.append(None)
        self._open_session()

    def _hand_over(self, session: Session) -> None:
        try:
            waiter = self._waiters.popleft()
        except IndexError:
            self._free.append(session)  # somebody has left the queue
        else:
            waiter.session = session
            waiter.served.release()

    def _turn_away(self, error: Callable[[], Exception]) -> None:
        while self.fail(error()):
            pass
        for session in self.idle():
            if self.claim(session):
                self._discard(session)
