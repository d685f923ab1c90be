"""The connections that a pool has in one process: opened, checked, replaced, closed.

All of this happens in background threads, which are greenlets if a framework has
monkey-patched them. So a caller that is interrupted does not interrupt it.
"""

from __future__ import annotations

import _thread
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg2

from psycogreen._pool.errors import PoolClosed
from psycogreen._pool.options import Options
from psycogreen._pool.places import Places
from psycogreen._pool.sessions import Configure, Session
from psycogreen._wait import native

logger = logging.getLogger("psycogreen")


class Keeper:
    """Opens and closes the connections of a pool, and holds their places."""

    def __init__(
        self,
        name: str,
        connect: Callable[[], Any],
        configure: Configure,
        options: Options,
    ) -> None:
        """Make a keeper for the pool *name*, without connections yet.

        *connect* returns a new connection.
        """
        self._name = name
        self._connect = connect
        self._configure = configure
        self._options = options
        self.places = Places(options.max_size, self._open_soon, self.discard)
        self._unused = [True]
        self._ended: list[Any] = []  # the lock that the tender waits for

    @property
    def used(self) -> bool:
        """Whether a connection was ever asked for."""
        return not self._unused

    def start(self) -> None:
        """Start the background thread. Does nothing the second time."""
        if not self._unused:
            return
        try:
            self._unused.pop()
        except IndexError:
            return  # another thread was first
        # Made here: the pool itself may have been made before the monkey patch.
        ended = _thread.allocate_lock()
        ended.acquire()
        self._ended.append(ended)
        _start(partial(self._tend, ended))

    def stop(self) -> None:
        """Close the idle connections now, and each of the others when it is returned."""
        self.places.close(self.closed_error)
        for ended in self._ended:
            ended.release()

    def closed_error(self) -> PoolClosed:
        """Return the error for callers of a closed pool."""
        return PoolClosed(f"pool {self._name!r} is closed")

    def leave_to_parent(self) -> None:
        """Let go of all connections, in a process that was just forked."""
        for session in self.places.idle():
            if self.places.claim(session):
                session.leave_to_parent()
        self.stop()

    def size(self) -> int:
        """Return how many connections there are, including those being opened or closed."""
        return self._options.max_size - self.places.empty()

    def in_use(self) -> int:
        """Return how many of them are not idle."""
        return self._options.max_size - self.places.free()

    def take_back(self, session: Session) -> None:
        """Reset a session for its next user, or close it."""
        try:
            good = session.renew(self._configure) and not session.is_old()
        except Exception as ex:  # noqa: BLE001
            logger.warning("pool %r: a connection was not reset: %s", self._name, ex)
            good = False
        except BaseException:
            self.discard(session)
            raise
        if good:
            self.places.release(session)
        else:
            self.discard(session)

    def discard(self, session: Session) -> None:
        """Close a session; its place becomes free when the server's process has ended."""
        try:
            session.close()
        except Exception as ex:  # noqa: BLE001
            # A subclass of psycopg2's connection may raise anything.
            logger.warning("pool %r: a connection was not closed: %s", self._name, ex)
        finally:
            # Also after a kill: close() waits if another greenlet uses the connection.
            if not _start(partial(self._await_end, session)):
                session.leave()
                self.places.release(None)

    def _await_end(self, session: Session) -> None:
        try:
            session.await_end()
        finally:
            self.places.release(None)

    def _open_soon(self) -> None:
        """Open a session in the background.

        Not in the greenlet that asks for it: if that is killed or times out, the server
        would have a connection that the pool does not count.
        """
        if not _start(self._open):
            self._open()

    def _open(self) -> None:
        session = None
        try:
            session = Session(self._connect(), self._options.max_lifetime)
            session.prepare(self._configure)
        except BaseException as ex:  # noqa: BLE001
            self.places.opened()
            self._report(ex)
            if session:
                self.discard(session)
            else:
                self.places.release(None)
        else:
            self.places.opened()
            self.places.release(session)

    def _report(self, ex: BaseException) -> None:
        """Raise *ex* in the first caller of the queue, or log it if there is none."""
        if not isinstance(ex, Exception):  # a kill, which must not kill the caller too
            msg = f"opening a connection was interrupted by {ex!r}"
            ex = psycopg2.OperationalError(msg)
        if not self.places.fail(ex):
            logger.warning("pool %r: cannot open a connection: %s", self._name, ex)

    def _tend(self, ended: Any) -> None:  # noqa: ANN401
        """Open missing connections and close old ones, until the pool is closed."""
        shortest = min(self._options.max_idle, self._options.max_lifetime)
        interval = min(30.0, max(0.05, shortest / 10))
        while not self.places.closed:
            self._close_old()
            self._open_missing()
            ended.acquire(timeout=interval)

    def _close_old(self) -> None:
        now = time.monotonic()
        more = self.size() - self._options.min_size
        # From the left, and back to the right: all of them keep their order.
        for session in self.places.idle():
            if not self.places.claim(session):
                continue
            unused = more > 0 and now - session.idle_since > self._options.max_idle
            if unused or session.is_old() or not session.is_alive():
                self.discard(session)
                more -= 1
            else:
                self.places.release(session)

    def _open_missing(self) -> None:
        while self.size() < self._options.min_size and self.places.open_one():
            pass


def _start(function: Callable[[], None]) -> bool:
    """Run *function* in a background thread, which may be a greenlet.

    Not in a greenlet of a native thread: it would never run if that thread ends, or does
    not wait any more. Return ``False`` if no thread can be started because the
    interpreter shuts down.
    """
    try:
        if native.is_main_thread():
            _thread.start_new_thread(function, ())
        else:
            native.start_thread(function)
    except RuntimeError:
        return False
    return True
