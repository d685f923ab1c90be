"""The places of a pool, and the queue of the callers that wait for one.

A pool has as many places as it may have connections. A place is either free, with an
idle session or empty, or in use by code that uses, opens or closes a session. So the
number in use follows from the free places, and no separate count can be wrong.

There is no lock. Each step is one operation of a `deque`, which is atomic; the next step
checks again what another thread may have changed. A lock would deadlock: the garbage
collector may run a destructor in the middle that returns a connection itself. A greenlet
cannot be killed between two steps, since it does not wait there.
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
    """A caller in the queue."""

    def __init__(self) -> None:
        """Begin to wait."""
        self.since = time.monotonic()
        self.session: Session | None = None
        self.error: Exception | None = None
        self.served = _thread.allocate_lock()
        self.served.acquire()

    def result(self) -> Session:
        """Return the session that the caller got, or raise the error."""
        try:
            if self.error is not None:
                raise self.error
            assert self.session
            return self.session
        finally:
            del self  # see `Places._wait`


class Places:
    """A fixed number of places, all empty at first."""

    def __init__(
        self,
        count: int,
        open_session: Callable[[], None],
        discard: Callable[[Session], None],
    ) -> None:
        """Make *count* places.

        *open_session* is called after a place was taken for it. It returns immediately;
        later it calls `opened` and releases the place. *discard* is called with a session
        that is no longer usable. It returns immediately, and later calls `release`.
        """
        self._free: deque[Session | None] = deque([None] * count)
        self._waiters: deque[Waiter] = deque()
        self._opening: deque[None] = deque()  # an entry for each session being opened
        self._open_session = open_session
        self._discard = discard
        self._closed: Callable[[], Exception] | None = None

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed is not None

    def idle(self) -> list[Session]:
        """Return the idle sessions, the longest idle one first."""
        return [place for place in self._free.copy() if place is not None]

    def empty(self) -> int:
        """Return how many places are free and have no session."""
        return self._free.count(None)

    def free(self) -> int:
        """Return how many places are free, with a session or empty."""
        return len(self._free)

    def waiting_since(self) -> list[float]:
        """Return when each waiter began to wait, in the time of `time.monotonic`."""
        return [waiter.since for waiter in self._waiters.copy()]

    def claim(self, place: Session | None) -> bool:
        """Take that idle session, or with ``None`` an empty place, if it is free.

        Return whether it was free.
        """
        try:
            self._free.remove(place)
        except ValueError:
            return False
        return True

    def take(self, timeout: float) -> Session | None:
        """Return a session that is alive; ``None`` after *timeout* seconds without one.

        Callers are served in the order in which they came. Raise the error if opening
        a connection fails.
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
            if not waiter.served.acquire(timeout=timeout) and self._leave(waiter):
                return None
            return waiter.result()
        except BaseException:
            if not self._leave(waiter) and waiter.session:
                self.release(waiter.session)
            raise
        finally:
            # Its error refers to this frame: the caller's variables would live until the
            # garbage collector runs.
            del waiter

    def _leave(self, waiter: Waiter) -> bool:
        """Leave the queue; return ``False`` if *waiter* was served meanwhile."""
        try:
            self._waiters.remove(waiter)
        except ValueError:
            # Another thread may not have finished serving it. If it has, the lock may be
            # taken already: a signal handler may raise right after acquire().
            if waiter.session is None and waiter.error is None:
                waiter.served.acquire()
            return False
        return True

    def release(self, session: Session | None) -> None:
        """Give back a place, with a session that was reset, or empty."""
        if session is None:
            self._free.appendleft(None)
        else:
            # The most recently used session is used next, so that others get idle.
            self._free.append(session)
        self._serve()

    def open_one(self) -> bool:
        """Start to open a session; return ``False`` if no place is empty."""
        if not self.claim(None):
            return False
        self._open()
        return True

    def opened(self) -> None:
        """Record that opening a session has ended, with success or not."""
        self._opening.pop()

    def fail(self, error: Exception) -> bool:
        """Raise *error* in the first caller of the queue; return whether there was one."""
        try:
            waiter = self._waiters.popleft()
        except IndexError:
            return False
        waiter.error = error
        waiter.served.release()
        return True

    def close(self, error: Callable[[], Exception]) -> None:
        """Close: raise an *error* in each caller that waits, now or later.

        Discard the idle sessions now, and each of the others when its place is released.
        """
        self._closed = error
        self._serve()

    def _serve(self) -> None:
        """Give free sessions to the callers in the queue; open new ones for the rest."""
        while self._waiters and not self._closed:
            try:
                session = self._free.pop()
            except IndexError:
                break  # the next release of a place calls this again
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
        """Use an empty place that was just taken; return whether to try another one."""
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
            self._free.append(session)  # the last waiter has left the queue
        else:
            waiter.session = session
            waiter.served.release()

    def _turn_away(self, error: Callable[[], Exception]) -> None:
        while self.fail(error()):
            pass
        for session in self.idle():
            if self.claim(session):
                self._discard(session)
