"""Count the waits of this process.

For a wait on the fast path this costs almost nothing: the entry has the time when it
began, and the epoll set counts the ends of many waits together.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import psycopg2

from psycogreen._errors import WaitTimeout
from psycogreen._wait import forks
from psycogreen._wait.deadline import ConnectTimeout

if TYPE_CHECKING:
    from psycopg2.extensions import connection

logger = logging.getLogger("psycogreen")


class _Totals:
    """The counters for waits outside the fast path."""

    def __init__(self) -> None:
        self.waits = 0
        self.cancelled = 0
        self.timed_out = 0


totals = _Totals()


class Wait:
    """A wait for *conn* outside the fast path."""

    def __init__(self, conn: connection, since: float) -> None:
        """Record a wait that began at *since*, in the time of `time.monotonic`."""
        self.conn = conn
        self.since = since


# `Wait` objects, not connections: an application's connections may define equality.
under_way: set[Wait] = set()
"""The waits under way outside the fast path."""


def _since() -> list[float]:
    return [wait.since for wait in list(under_way)]


sources: list[Callable[[], Iterable[float]]] = [_since]
"""Functions that return when waits under way began: one for each place that records
them. Each copies its data first: another thread may begin a wait meanwhile."""

counters: list[Callable[[], int]] = [lambda: totals.waits]
"""Functions that return how many waits have ended: one for each place that counts
them."""


def waits() -> int:
    """Return how many waits have ended in this process."""
    return sum(counter() for counter in counters)


def ages() -> list[float]:
    """Return how many seconds each wait under way has lasted."""
    begun = [since for source in sources for since in source()]
    now = time.monotonic()
    return [now - since for since in begun]


def is_interruption(ex: BaseException) -> bool:
    """Return whether *ex* has interrupted a wait, so that the query may still be running.

    An error of psycopg2 is the result of the query, except psycogreen's timeouts.
    """
    limits = (WaitTimeout, ConnectTimeout)
    return isinstance(ex, limits) or not isinstance(ex, psycopg2.Error)


def note_interruption(conn: connection, ex: BaseException, since: float) -> None:
    """Count and log that the wait for *conn*, under way *since*, ended with *ex*."""
    if isinstance(ex, (WaitTimeout, ConnectTimeout)):
        totals.timed_out += 1
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug(
            "wait for backend %d interrupted by %s after %.3f s",
            conn.info.backend_pid,
            type(ex).__name__,
            time.monotonic() - since,
        )


@forks.after_in_child
def _after_fork() -> None:
    """Reset the counters in a forked child, and drop the parent's waits.

    The child has copies of the connections that the parent waits for. A timeout there,
    or their collection, must not reach the server.
    """
    totals.waits = totals.cancelled = totals.timed_out = 0
    descriptors = []
    for wait in under_way:
        with contextlib.suppress(psycopg2.Error):  # closed meanwhile
            descriptors.append(wait.conn.fileno())
    under_way.clear()
    forks.disconnect(descriptors)
