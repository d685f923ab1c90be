"""How many waits there are and were in this process.

For a wait that takes its usual way this costs next to nothing: when it began is kept
where it is noted anyway, and its end is counted together with others'.
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
    """What has happened, of which the usual way of a wait knows nothing."""

    def __init__(self) -> None:
        self.waits = 0
        self.cancelled = 0
        self.timed_out = 0


totals = _Totals()


class Wait:
    """A wait for *conn* that has no other place to be noted."""

    def __init__(self, conn: connection, since: float) -> None:
        """Be under way *since* then, in terms of `time.monotonic`."""
        self.conn = conn
        self.since = since


# By identity: what an application's connections are equal to is its own affair.
under_way: set[Wait] = set()
"""The waits that have no other place to be noted."""


def _since() -> list[float]:
    return [wait.since for wait in list(under_way)]


sources: list[Callable[[], Iterable[float]]] = [_since]
"""What tells since when the waits under way last: one place where they are noted
each. They are copied, since another thread may begin a wait meanwhile."""

counters: list[Callable[[], int]] = [lambda: totals.waits]
"""What tells how many waits have ended: one place where they are counted each."""


def waits() -> int:
    """Return how many waits have ended in this process."""
    return sum(counter() for counter in counters)


def ages() -> list[float]:
    """Return how long each of the waits under way has lasted, in seconds."""
    begun = [since for source in sources for since in source()]
    now = time.monotonic()
    return [now - since for since in begun]


def is_interruption(ex: BaseException) -> bool:
    """Return whether *ex* has ended a wait that PostgreSQL would have gone on with.

    An error of psycopg2's is the query's own end, unless it is a limit of ours.
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
    """Begin at zero: what the parent did, and waits for, is not this process's.

    What the child does with its copies of the connections that are waited for, when
    a timeout ends their waits or they are collected, must not reach the server.
    """
    totals.waits = totals.cancelled = totals.timed_out = 0
    descriptors = []
    for wait in under_way:
        with contextlib.suppress(psycopg2.Error):  # closed meanwhile
            descriptors.append(wait.conn.fileno())
    under_way.clear()
    forks.disconnect(descriptors)
