"""A pool of connections for green workers, and for any other.

In the worker::

    from functools import partial
    import psycopg2
    from psycogreen.pool import Pool

    pool = Pool(partial(psycopg2.connect, "dbname=app"), max_size=20)

    with pool.connection() as conn:
        ...

The pool waits, opens and closes in the way of the process that it is made in:
cooperatively if a framework has monkey-patched it, else in native threads. So make
it after the monkey patch, and after the fork. `psycogreen.integrations.django` is
this pool in Django.
"""

from __future__ import annotations

import _thread
import itertools
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import psycopg2

from psycogreen._pool.places import Places
from psycogreen._pool.sessions import Session
from psycogreen._pool.traces import watched
from psycogreen._wait import forks

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from psycogreen._pool.traces import WatchedConnection

__all__ = [
    "Loan",
    "Pool",
    "PoolClosed",
    "PoolStatus",
    "PoolTimeout",
    "TooManyRequests",
    "status",
]


class PoolTimeout(psycopg2.OperationalError):
    """No connection was free in time."""


class TooManyRequests(psycopg2.OperationalError):
    """Too many wait for a connection already."""


class PoolClosed(psycopg2.OperationalError):
    """The pool has been closed."""


@dataclass(frozen=True)
class PoolStatus:
    """A pool's figures, at the moment of asking."""

    name: str
    """The alias of Django's database, or the *name* that the pool was given."""

    min_size: int
    max_size: int

    size: int
    """How many connections it has, those being opened or closed included."""

    in_use: int
    """How many of them are not idle."""

    waiting: int
    """How many greenlets or threads wait for a connection."""

    longest_wait: float
    """How long the first of them has waited, in seconds; 0 if nobody waits."""

    timed_out: int
    """How many have waited in vain, for *timeout* seconds."""


class Connect(Protocol):
    """Opens a connection, as ``functools.partial(psycopg2.connect, dsn)`` does."""

    def __call__(self, *, connection_factory: type[WatchedConnection]) -> Any:  # noqa: ANN401
        """Return a new connection of that class."""


class Loan:
    """A connection of a pool, until it is given back."""

    __slots__ = ("_sessions", "conn")

    def __init__(self, session: Session) -> None:
        """Lend *session*'s connection."""
        self.conn: WatchedConnection = session.conn
        self._sessions = [session]

    @property
    def ended(self) -> bool:
        """Whether the connection was given back."""
        return not self._sessions

    def end(self) -> Session | None:
        """Return the session to the one who ends the loan, ``None`` to any later one.

        A greenlet's end and its own ``put()`` may both mean to give it back.
        """
        try:
            return self._sessions.pop()
        except IndexError:
            return None


class Pool:
    """At most *max_size* connections, lent to those who ask in the order of asking.

    *connect* is called with ``connection_factory=`` and returns a new connection.
    *configure* is called with each new connection, and again when its session had to
    be reset; what it sets is what a borrower finds. *connection_factory* is the
    class of the connections, ``None`` psycopg2's own.

    The other options are those of ``psycopg_pool`` for psycopg 3: *min_size*
    connections are kept, opened in the background from the first use on, further ones
    when they are needed, up to *max_size* (``None``: *min_size*). A borrower waits for
    *timeout* seconds, unless *max_waiting* others wait already (0: no limit). A
    connection is closed after about *max_lifetime* seconds, or when it has been idle
    for *max_idle* seconds and there are more than *min_size*.

    A server process that ends counts until it has ended, whatever has become of its
    borrower: the server never has more than *max_size* connections of this pool.

    For any number of threads and greenlets. It belongs to the process that made it:
    a fork of that has to make its own. Raise `ValueError` for an option that makes
    no sense.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        configure: Callable[[WatchedConnection], object] | None = None,
        connection_factory: type[connection] | None = None,
        name: str | None = None,
        min_size: int = 4,
        max_size: int | None = None,
        timeout: float = 30.0,
        max_waiting: int = 0,
        max_lifetime: float = 3600.0,
        max_idle: float = 600.0,
    ) -> None:
        """Make a pool, which opens its first connections when it is first used."""
        max_size = min_size if max_size is None else max_size
        _check(min_size, max_size, timeout, max_waiting, max_lifetime, max_idle)
        self.name = name or f"pool-{next(_numbers)}"
        self.min_size = min_size
        self.max_size = max_size
        self.timeout = timeout
        self.max_waiting = max_waiting
        self.max_lifetime = max_lifetime
        self.max_idle = max_idle
        self.closed = False
        self.timed_out = 0
        self._connect = connect
        self._factory = watched(connection_factory)  # type: ignore[arg-type]
        self._configure = configure or _leave_as_it_is
        self._places = Places(max_size, self._open_soon, self._discard)
        self._forks = forks.count
        # Held as long as the pool is open: the one who tends it waits for that.
        self._open = _thread.allocate_lock()
        self._open.acquire()
        self._unused = [True]

    @contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[WatchedConnection]:
        """Lend a connection for a ``with`` block, as `get` does.

        Its transaction is committed at the end, or rolled back after an exception.
        """
        loan = self.get(timeout)
        try:
            with loan.conn:
                yield loan.conn
        finally:
            self.put(loan)

    def get(self, timeout: float | None = None) -> Loan:
        """Lend a connection; wait for one if need be, at most *timeout* seconds.

        ``None`` is the pool's own limit. Whoever calls this calls `put` afterwards.
        Raise `PoolTimeout`, `TooManyRequests` or `PoolClosed`, or what opening a
        connection has raised.
        """
        timeout = self.timeout if timeout is None else timeout
        if self.closed:
            raise self._closed_error()
        if self._unused:
            self._begin()
        if self.max_waiting and not self._places.free():
            self._check_waiting()
        session = self._places.take(timeout)
        if session is None:
            self.timed_out += 1
            raise PoolTimeout(self._too_late(timeout))
        return Loan(session)

    def _begin(self) -> None:
        try:
            self._unused.pop()
        except IndexError:
            return  # another thread was first
        _pools.add(self)
        _start(self._tend)

    def _check_waiting(self) -> None:
        waiting = len(self._places.waiting_since())
        if waiting >= self.max_waiting:
            msg = (
                f"too many wait for a connection of pool {self.name!r}: "
                f"{waiting} do, {self._in_use()}; raise max_waiting or max_size"
            )
            raise TooManyRequests(msg)

    def _too_late(self, timeout: float) -> str:
        return (
            f"no connection of pool {self.name!r} was free within {timeout:g} s: "
            f"{self._in_use()}, {len(self._places.waiting_since())} others wait; "
            f"raise max_size or timeout, or keep connections for a shorter time"
        )

    def _in_use(self) -> str:
        used = self.max_size - self._places.free()
        return f"{used} of {self.max_size} are in use"

    def put(self, loan: Loan) -> None:
        """Take a connection back, rolled back and in the state of a new one.

        If it cannot be brought into that state it is closed. Does nothing if it was
        taken back already, or if it belongs to the process that this one was forked
        from.
        """
        session = loan.end()
        if session is None or self._forks != forks.count:
            return
        try:
            reusable = (
                session.renew(self._configure)
                and session.expires > time.monotonic()
                and not self.closed
            )
        except Exception:  # noqa: BLE001
            reusable = False
        except BaseException:
            self._discard(session)
            raise
        if not reusable:
            self._discard(session)
            return
        session.idle_since = time.monotonic()
        self._places.release(session)
        if self.closed:  # since it was asked
            self._close_idle()

    def drop(self, loan: Loan) -> None:
        """Take a connection back and close it, without waiting for anything.

        Does nothing if it was taken back already, as in `put`.
        """
        session = loan.end()
        if session and self._forks == forks.count:
            self._discard(session)

    def close(self) -> None:
        """Close the idle connections now, and those in use when they come back.

        Those who wait get `PoolClosed`, and so do those who ask later. Does nothing
        the second time.
        """
        if self.closed:
            return
        self.closed = True
        _pools.discard(self)
        self._open.release()
        self._places.fail_all(self._closed_error)
        self._close_idle()

    def _closed_error(self) -> PoolClosed:
        return PoolClosed(f"pool {self.name!r} is closed")

    def _close_idle(self) -> None:
        for session in self._places.idle():
            if self._places.claim(session):
                self._discard(session)

    def status(self) -> PoolStatus:
        """Return the pool's figures at this moment."""
        since = self._places.waiting_since()
        return PoolStatus(
            name=self.name,
            min_size=self.min_size,
            max_size=self.max_size,
            size=self.max_size - self._places.empty(),
            in_use=self.max_size - self._places.free(),
            waiting=len(since),
            longest_wait=time.monotonic() - min(since) if since else 0.0,
            timed_out=self.timed_out,
        )

    def _open_soon(self) -> None:
        """Open a connection for a place that was taken for it, in the background.

        Not in the greenlet that asks for it: that one may be killed, or give up, and
        the server have a connection that nobody counts.
        """
        self._places.opening.append(None)
        if not _start(self._open_session):
            self._open_session()

    def _open_session(self) -> None:
        try:
            session = self._new_session()
        except BaseException as ex:  # noqa: BLE001
            self._places.opening.pop()
            self._places.fail(ex if isinstance(ex, Exception) else _killed(ex))
            return
        self._places.opening.pop()
        if self.closed:
            self._discard(session)
        else:
            self._places.release(session)

    def _new_session(self) -> Session:
        if self.closed:
            raise self._closed_error()
        conn = self._connect(connection_factory=self._factory)
        try:
            self._configure(conn)
            session = Session(conn, self.max_lifetime)
        except BaseException:
            conn.close()
            raise
        session.idle_since = time.monotonic()
        return session

    def _discard(self, session: Session) -> None:
        """Close a session; its place is free again once the server's process is gone."""
        session.close()
        if not _start(partial(self._await_end, session)):
            self._places.release(None)

    def _await_end(self, session: Session) -> None:
        try:
            session.await_end()
        finally:
            self._places.release(None)

    def _tend(self) -> None:
        """Open what is missing and close what is too old, until the pool is closed."""
        interval = min(30.0, max(0.05, min(self.max_idle, self.max_lifetime) / 10))
        while not self.closed and self._forks == forks.count:
            self._close_old()
            self._open_missing()
            self._open.acquire(timeout=interval)

    def _close_old(self) -> None:
        now = time.monotonic()
        more = self.max_size - self._places.empty() - self.min_size
        for session in self._places.idle():
            unused = more > 0 and now - session.idle_since > self.max_idle
            old = unused or session.expires < now or not session.is_alive()
            if old and self._places.claim(session):
                self._discard(session)
                more -= 1

    def _open_missing(self) -> None:
        while self.max_size - self._places.empty() < self.min_size:
            if not self._places.claim(None):
                return
            self._open_soon()


def status() -> list[PoolStatus]:
    """Return the figures of all open pools of this process."""
    return [pool.status() for pool in list(_pools)]


def _check(
    min_size: int,
    max_size: int,
    timeout: float,
    max_waiting: int,
    max_lifetime: float,
    max_idle: float,
) -> None:
    if min_size < 0:
        msg = f"min_size={min_size!r}: it must be 0 or more"
    elif max_size < max(min_size, 1):
        msg = f"max_size={max_size!r}: it must be 1 or more, and at least min_size"
    elif max_waiting < 0:
        msg = f"max_waiting={max_waiting!r}: it must be 0 (no limit) or more"
    else:
        seconds = {
            "timeout": timeout,
            "max_lifetime": max_lifetime,
            "max_idle": max_idle,
        }
        wrong = [f"{name}={value!r}" for name, value in seconds.items() if value <= 0]
        if not wrong:
            return
        msg = f"{wrong[0]}: it must be more than 0 seconds"
    raise ValueError(msg)


def _killed(ex: BaseException) -> psycopg2.OperationalError:
    """Return what to tell a borrower: it is not the one who was killed."""
    return psycopg2.OperationalError(f"opening a connection was interrupted by {ex!r}")


def _leave_as_it_is(conn: WatchedConnection) -> None:
    """Configure nothing."""


def _start(function: Callable[[], None]) -> bool:
    """Run *function* in the background, in a thread, which may be a greenlet.

    Return ``False`` if none can be started: the interpreter shuts down.
    """
    try:
        _thread.start_new_thread(function, ())
    except RuntimeError:
        return False
    return True


_numbers = itertools.count(1)
_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


@forks.after_in_child
def _after_fork() -> None:
    """Leave the pools to the parent process."""
    for pool in list(_pools):
        for session in pool._places.idle():
            session.leave_to_parent()
        pool.closed = True
    _pools.clear()
