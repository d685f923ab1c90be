"""A connection pool for green workers and for threads.

In the worker::

    from functools import partial
    import psycopg2
    from psycogreen.pool import Pool

    pool = Pool(partial(psycopg2.connect, "dbname=app"), max_size=20)

    with pool.connection() as conn:
        ...

The pool waits, opens and closes connections cooperatively if a framework has
monkey-patched the process when the pool is first used, else in native threads. So use it
only after the monkey patch. `psycogreen.integrations.django` is this pool in Django.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from psycogreen._pool.errors import PoolClosed, PoolTimeout, TooManyRequests
from psycogreen._pool.keeper import Keeper
from psycogreen._pool.options import Options
from psycogreen._pool.traces import watched
from psycogreen._wait import forks

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from psycogreen._pool.sessions import Session
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


@dataclass(frozen=True)
class PoolStatus:
    """The figures of a pool at one moment."""

    name: str
    """The alias of Django's database, or the *name* that the pool was given."""

    min_size: int
    max_size: int

    size: int
    """How many connections it has, including those being opened or closed."""

    in_use: int
    """How many of them are not idle."""

    waiting: int
    """How many greenlets or threads wait for a connection."""

    longest_wait: float
    """How many seconds the first of them has waited; 0 if none waits."""

    timed_out: int
    """How many requests for a connection have timed out."""


class Connect(Protocol):
    """Opens a connection, as ``functools.partial(psycopg2.connect, dsn)`` does."""

    def __call__(self, *, connection_factory: type[WatchedConnection]) -> Any:  # noqa: ANN401
        """Return a new connection of that class."""


class Loan:
    """A connection of a pool, until it is returned with `Pool.put` or `Pool.drop`."""

    __slots__ = ("_conn", "_keeper", "_sessions")

    def __init__(self, session: Session, keeper: Keeper) -> None:
        """Lend the connection of *session*, which *keeper* keeps."""
        self._conn: WatchedConnection = session.conn
        self._keeper = keeper
        self._sessions = [session]

    @property
    def conn(self) -> WatchedConnection:
        """The connection. Do not use it after the loan has ended."""
        return self._conn

    @property
    def ended(self) -> bool:
        """Whether the connection was returned."""
        return not self._sessions

    def _end(self) -> Session | None:
        """End the loan and return its session; return ``None`` from the second call on.

        The end of a greenlet and its own ``put()`` may both end the loan.
        """
        try:
            return self._sessions.pop() if self._sessions else None
        except IndexError:  # another thread was first
            return None


class Pool:
    """A pool of at most *max_size* connections, lent in the order of the requests.

    *connect* is called with ``connection_factory=`` and returns a new connection.
    *configure* is called with each new connection, and again after its session had to
    be reset. Every borrower finds the state that it sets; it must commit. The
    connections are of the class *connection_factory*; ``None`` is psycopg2's own.
    *name* stands in errors, in the log and in metrics, which add up pools of one name;
    ``None`` is ``pool-1``, ``pool-2`` and so on.

    The other options are those of ``psycopg_pool`` for psycopg 3. The pool keeps
    *min_size* connections, and opens them in the background when it is first used. It
    opens more when they are needed, up to *max_size* (``None``: *min_size*). A borrower
    waits for at most *timeout* seconds, and not at all if *max_waiting* others wait
    already (0: no limit). A connection is closed after about *max_lifetime* seconds, or
    after it was idle for *max_idle* seconds if there are more than *min_size*.

    A connection counts until its server process has ended, also if its borrower was
    killed: the server never has more than *max_size* connections of this pool.

    Any number of threads and greenlets may use a pool; under eventlet, whose locks
    belong to one thread, only the greenthreads of one. In a forked process it starts
    without connections and leaves the existing ones to the parent. Raise `ValueError`
    for an invalid option, and `TypeError` if *connection_factory* is not a class.
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
        """Make a pool. It opens its first connections when it is first used."""
        self.name = name or f"pool-{next(_numbers)}"
        self._options = Options(
            min_size=min_size,
            max_size=min_size if max_size is None else max_size,
            timeout=timeout,
            max_waiting=max_waiting,
            max_lifetime=max_lifetime,
            max_idle=max_idle,
        )
        factory = watched(connection_factory)  # type: ignore[arg-type]
        self._connect = partial(connect, connection_factory=factory)
        self._configure = configure or _leave_as_it_is
        self._begin()

    def _begin(self) -> None:
        """Start without connections."""
        self._keeper = Keeper(self.name, self._connect, self._configure, self._options)
        self._timed_out = 0

    @property
    def closed(self) -> bool:
        """Whether the pool was closed."""
        return self._keeper.places.closed

    @contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[WatchedConnection]:
        """Lend a connection for a ``with`` block, as `get` does.

        Its transaction is committed at the end, or rolled back after an exception.
        """
        loan = self.get(timeout)
        try:
            yield loan.conn
            loan.conn.commit()
        finally:
            self.put(loan)

    def get(self, timeout: float | None = None) -> Loan:
        """Lend a connection; wait for a free one for at most *timeout* seconds.

        ``None`` is the pool's own *timeout*; with 0 it does not wait. The caller must
        `put` the loan back. Raise `PoolTimeout`, `TooManyRequests`, `PoolClosed`, or the
        error if a connection cannot be opened, and `ValueError` if *timeout* is negative
        or no number.
        """
        timeout = self._options.timeout if timeout is None else timeout
        if not 0 <= timeout < math.inf:
            msg = f"timeout={timeout!r}: it must be a number of seconds, 0 or more"
            raise ValueError(msg)
        keeper = self._keeper
        if keeper.places.closed:
            raise keeper.closed_error()
        if not keeper.used:
            keeper.start()
            _pools.add(self)
        self._check_waiting()
        session = keeper.places.take(timeout)
        if session is None:
            self._timed_out += 1
            raise PoolTimeout(self._too_late(timeout))
        return Loan(session, keeper)

    def _check_waiting(self) -> None:
        limit = self._options.max_waiting
        if not limit or self._keeper.places.free():
            return
        waiting = len(self._keeper.places.waiting_since())
        if waiting >= limit:
            msg = (
                f"too many requests wait for a connection of pool {self.name!r}: "
                f"{waiting} do, {self._in_use()}; raise max_waiting or max_size"
            )
            raise TooManyRequests(msg)

    def _too_late(self, timeout: float) -> str:
        return (
            f"no connection of pool {self.name!r} was free within {timeout:g} s: "
            f"{self._in_use()}, {len(self._keeper.places.waiting_since())} others wait; "
            f"raise max_size or timeout, or keep connections for a shorter time"
        )

    def _in_use(self) -> str:
        return f"{self._keeper.in_use()} of {self._options.max_size} are in use"

    def put(self, loan: Loan) -> None:
        """Return a connection to the pool: roll it back and reset its session.

        If that fails, the connection is closed. Does nothing if it was returned already,
        or if it belongs to the parent of this forked process.
        """
        session = loan._end()
        if session and loan._keeper is self._keeper:
            self._keeper.take_back(session)

    def drop(self, loan: Loan) -> None:
        """Return a connection to the pool and close it, without waiting.

        Does nothing in the cases in which `put` does nothing.
        """
        session = loan._end()
        if session and loan._keeper is self._keeper:
            self._keeper.discard(session)

    def close(self) -> None:
        """Close the idle connections now, and those in use when they are returned.

        Waiting and later requests raise `PoolClosed`. Does nothing the second time.
        """
        if not self.closed:
            _pools.discard(self)
            self._keeper.stop()

    def status(self) -> PoolStatus:
        """Return the current figures of the pool."""
        since = self._keeper.places.waiting_since()
        return PoolStatus(
            name=self.name,
            min_size=self._options.min_size,
            max_size=self._options.max_size,
            size=self._keeper.size(),
            in_use=self._keeper.in_use(),
            waiting=len(since),
            longest_wait=time.monotonic() - min(since) if since else 0.0,
            timed_out=self._timed_out,
        )


def status() -> list[PoolStatus]:
    """Return the current figures of all open pools that this process has used."""
    return [pool.status() for pool in list(_pools)]


def _leave_as_it_is(conn: WatchedConnection) -> None:
    """Configure nothing."""


_numbers = itertools.count(1)
_pools: set[Pool] = set()


@forks.after_in_child
def _after_fork() -> None:
    """Leave the connections to the parent process, and start without any."""
    for pool in list(_pools):
        pool._keeper.leave_to_parent()
        pool._begin()
    _pools.clear()
