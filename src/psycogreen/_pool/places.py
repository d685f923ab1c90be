"""The places of a pool, and the queue of those who wait for one.

A pool has as many places as it may have connections. A place is always somewhere:
it is free, with an idle session or empty; or somebody has it, who uses, opens, or
closes a session. So what is free says what is in use, and none can be lost by a count
that went wrong.

Threads need no lock here: each step is one operation of a `deque`, which is atomic.
A greenlet cannot be killed between two of them, since it does not wait there.
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

        *open_session* is called with a place taken for it. It returns at once, and
        ends with `release` or `fail`. *discard* is called with a session that is no
        longer good; it returns at once, and ends with `release`.
        """
        self._free: deque[Session | None] = deque([None] * count)
        self._waiters: deque[Waiter] = deque()
        self._open_session = open_session
        self._discard = discard
        self.opening: deque[None] = deque()  # an entry for each session being opened

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

    def fail(self, error: Exception) -> None:
        """Give back an empty place; who is the first in the queue gets *error*."""
        try:
            waiter = self._waiters.popleft()
        except IndexError:
            pass
        else:
            waiter.error = error
            waiter.served.release()
        self.release(None)

    def fail_all(self, error: Callable[[], Exception]) -> None:
        """Send away everybody in the queue, each with an *error* of its own."""
        while self._waiters:
            try:
                waiter = self._waiters.popleft()
            except IndexError:
                break
            waiter.error = error()
            waiter.served.release()

    def _serve(self) -> None:
        """Hand free sessions to those in the queue; have new ones opened for them."""
        while self._waiters:
            try:
                session = self._free.pop()
            except IndexError:
                return  # the next one who releases a place comes here
            if session is None:
                if not self._open_for_waiters():
                    return
            elif not session.is_alive():
                self._discard(session)
            else:
                self._hand_over(session)

    def _open_for_waiters(self) -> bool:
        """Use an empty place, just taken; return whether that may be worth repeating."""
        if len(self.opening) < len(self._waiters):
            self._open_session()
            return True
        self._free.appendleft(None)
        # Another thread may have begun to wait before it could see the place.
        return len(self.opening) < len(self._waiters)

    def _hand_over(self, session: Session) -> None:
        try:
            waiter = self._waiters.popleft()
        except IndexError:
            self._free.append(session)  # somebody has left the queue
        else:
            waiter.session = session
            waiter.served.release()
