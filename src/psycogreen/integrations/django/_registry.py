"""The pools of this process, one for each alias of Django's databases."""

from __future__ import annotations

import copy
import threading
from typing import TYPE_CHECKING, Any

from psycogreen._wait import forks
from psycogreen.pool import Pool, PoolStatus

if TYPE_CHECKING:
    from psycogreen.pool import Connect, Loan

Settings = dict[str, Any]

_pools: dict[str, AliasPool] = {}


class AliasPool(Pool):
    """The pool of an alias, valid until the alias's settings change."""

    def __init__(
        self,
        alias: str,
        settings: Settings,
        arguments: dict[str, Any],
        connect: Connect,
        **options: Any,  # noqa: ANN401
    ) -> None:
        """Make the pool of *alias*; *options* are those of `Pool`.

        *arguments* are those for psycopg2, of which Django's wrapper may be asked.
        """
        super().__init__(connect, name=alias, **options)
        # A copy: a test runner writes the name of its database into the original.
        self.settings = copy.deepcopy(settings)
        self.arguments = arguments
        # Made here, after the monkey patch, so that each greenlet has its own data.
        self._local = threading.local()

    def is_for(self, settings: Settings) -> bool:
        """Return whether this is the pool for *settings*."""
        return not self.closed and self.settings == settings

    def lend(self, *, to_this_thread: bool) -> Borrowed:
        """Lend a connection.

        With *to_this_thread* it is closed if the thread or greenlet ends without
        returning it, for example because it was killed. Other references to it are then
        cyclic garbage, which would be collected later. (Under eventlet the greenlet is
        cyclic garbage too, so there it is closed when that is collected.)
        """
        loan = self.get()
        if to_this_thread:
            mine = self._mine()
            mine[:] = [other for other in mine if not other.loan.ended]
            mine.append(Borrowed(self, loan))
        return Borrowed(self, loan)

    def _mine(self) -> list[Borrowed]:
        """Return what this thread has borrowed."""
        try:
            mine: list[Borrowed] = self._local.borrowed
        except AttributeError:
            mine = self._local.borrowed = []
        return mine


class Borrowed:
    """A borrowed connection, which is closed if its borrower does not return it."""

    __slots__ = ("_pool", "loan")

    def __init__(self, pool: Pool, loan: Loan) -> None:
        """Record the pool and the loan."""
        self._pool = pool
        self.loan = loan

    def give_back(self) -> None:
        """Return the connection to the pool."""
        self._pool.put(self.loan)

    def __del__(self) -> None:
        """Close the connection, unless it was returned."""
        self._pool.drop(self.loan)


def find(alias: str) -> AliasPool | None:
    """Return the pool of *alias*, if there is one."""
    return _pools.get(alias)


def add(pool: AliasPool) -> AliasPool:
    """Register *pool* for its alias; return it, or the one that another thread added."""
    stale = _pools.get(pool.name)
    if stale and not stale.is_for(pool.settings):
        close(pool.name)
    return _pools.setdefault(pool.name, pool)


def close(alias: str) -> None:
    """Close the pool of *alias*, if there is one."""
    if pool := _pools.pop(alias, None):
        pool.close()


def pool_status(alias: str = "default") -> PoolStatus | None:
    """Return the figures of the pool of *alias* in this process.

    Return ``None`` if no connection was made through it yet, or it was closed.
    """
    pool = _pools.get(alias)
    return None if pool is None or pool.closed else pool.status()


@forks.after_in_child
def _after_fork() -> None:
    """Drop the pools, which were made in the parent: it may not be monkey-patched."""
    _pools.clear()
