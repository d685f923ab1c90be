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
    """The pool of an alias, as long as the alias's settings stay as they are."""

    def __init__(
        self,
        alias: str,
        settings: Settings,
        connect: Connect,
        **options: Any,  # noqa: ANN401
    ) -> None:
        """Make the pool of *alias*; *options* are those of `Pool`."""
        super().__init__(connect, name=alias, **options)
        # A copy: a test runner writes the name of its database into the original.
        self.settings = copy.deepcopy(settings)
        # Made here, after the monkey patch: it is each greenlet's then.
        self._local = threading.local()

    def is_for(self, settings: Settings) -> bool:
        """Return whether this is the pool for *settings*."""
        return not self.closed and self.settings == settings

    def lend(self, *, to_this_thread: bool) -> Borrowed:
        """Lend a connection.

        With *to_this_thread* it is closed when the thread, or greenlet, ends without
        having given it back, for example because it was killed. What else refers to it
        then is cyclic garbage, and comes to be collected later. (Under eventlet the
        greenlet is such garbage too, so it has to be collected there.)
        """
        loan = self.get()
        if to_this_thread:
            mine = self._mine()
            for other in [other for other in mine if other.loan.ended]:
                mine.discard(other)
            mine.add(Borrowed(self, loan))
        return Borrowed(self, loan)

    def _mine(self) -> set[Borrowed]:
        """Return what this thread has borrowed."""
        try:
            mine: set[Borrowed] = self._local.borrowed
        except AttributeError:
            mine = self._local.borrowed = set()
        return mine


class Borrowed:
    """A connection, in the hands of somebody who may be gone before he returns it."""

    __slots__ = ("_pool", "loan")

    def __init__(self, pool: Pool, loan: Loan) -> None:
        """Note where it came from."""
        self._pool = pool
        self.loan = loan

    def give_back(self) -> None:
        """Give it back, as new."""
        self._pool.put(self.loan)

    def __del__(self) -> None:
        """Have it closed, unless it was given back."""
        self._pool.drop(self.loan)


def find(alias: str) -> AliasPool | None:
    """Return the pool of *alias*, if there is one."""
    return _pools.get(alias)


def add(pool: AliasPool) -> AliasPool:
    """Make *pool* that of its alias; return the one that another thread has added."""
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

    ``None`` if nothing has connected through it yet, or it was closed.
    """
    pool = _pools.get(alias)
    return None if pool is None or pool.closed else pool.status()


@forks.after_in_child
def _after_fork() -> None:
    """Make pools of its own, which may be monkey-patched where the parent was not."""
    _pools.clear()
