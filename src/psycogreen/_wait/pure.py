"""What runs for every query, in Python. Its twin in C is _speedups.c."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from psycopg2.extensions import POLL_OK, POLL_READ

from psycogreen._wait import native

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from psycogreen._wait.hub import Hub

    Wait = Callable[[connection, float | None], None]
    FindEntry = Callable[[connection, int, float | None], "Entry | None"]
    Failed = Callable[[connection, "Entry", BaseException], bool]

CHECK_INTERVAL = 1000
"""After how many batches of events one is looked at, whether it is true."""

# uWSGI's uGreen never waits here, and needs no greenlet.
with contextlib.suppress(ModuleNotFoundError):
    from greenlet import getcurrent, greenlet

    switch_to = greenlet.switch

BATCH = 64
"""So many events are taken at once; the rest is there when the loop looks again."""

get_ident = native.original("_thread", "get_ident")


class BaseSet:
    """The part of an epoll set that every wait touches."""

    def __init__(self, hub: Hub) -> None:
        """Belong to *hub*."""
        self.hub = hub
        self.greenlet = hub.greenlet
        self.plain = hub.plain
        self.switch = hub.switch
        self.waiting = 0
        """How many greenlets wait."""
        self.held = False
        """Whether the loop was told that somebody does."""
        self.ended = 0
        """How many waits have ended."""
        self.now = 0.0
        """The time, while greenlets are woken."""
        self.abandoned = False
        self.epoll_fd = -1
        self._epoll: Any = None
        self._collected = 0

    def collect(self) -> None:
        """Wake whoever waits for a socket that is ready. Called in the hub."""
        if self.abandoned:
            self.hub.release()
            return
        self._collected += 1
        if self._collected % CHECK_INTERVAL == 0 and self.check():
            return
        ended = 0
        self.now = monotonic()
        try:
            for fd, _ in self._epoll.poll(0, BATCH):
                entry = entries.get(fd)
                # Asked anew for each: the one before may have killed this one.
                waiter = entry.waiter if entry and entry.epoll_set is self else None
                if waiter is None:
                    self.remove(fd)
                    continue
                ended += 1
                waiter.switch()
        finally:
            self.now = 0.0
            self.ended += ended

    # What is unusual: see `psycogreen._wait.epoll.EpollSet`.

    def change(self, entry: Entry, state: int) -> None:
        raise NotImplementedError

    def hold(self) -> None:
        raise NotImplementedError

    def release(self) -> None:
        raise NotImplementedError

    def check(self) -> bool:
        raise NotImplementedError

    def remove(self, fd: int) -> None:
        raise NotImplementedError


class Entry:
    """A connection's socket in a set."""

    __slots__ = ("conn", "epoll_set", "fd", "since", "state", "thread", "waiter")

    def __init__(
        self, epoll_set: BaseSet, thread: int, conn: connection, fd: int
    ) -> None:
        """Belong to *conn*, until another one has the same descriptor *fd*."""
        self.epoll_set = epoll_set
        self.thread = thread
        self.conn = weakref.ref(conn)
        self.fd = fd
        self.state = POLL_READ
        """What the set waits for on this socket, in psycopg2's terms."""
        self.waiter: greenlet | None = None
        self.since = 0.0
        """When its last wait began: `time.monotonic`, or for a greenlet just woken
        the time when its loop looked, which costs less to know."""


entries: dict[int, Entry] = {}
"""The entries of all sets by descriptor. One that is found by its number has to
be asked whose it is: which connection's, and which thread's."""


def make_wait(find_entry: FindEntry, failed: Failed) -> Wait:  # noqa: C901
    """Return the callback: the loop that waits for queries.

    It runs for every query, and what it costs is what being green costs. So it is
    one function: the usual case straight through, everything else elsewhere.

    *find_entry* returns the entry of a connection that has none here, or has done
    the waiting otherwise if it returns ``None``. *failed* is called with what ends a
    wait, while that is being handled; it returns whether to wait anew instead.
    """

    def wait(  # noqa: C901
        conn: connection, timeout: float | None = None
    ) -> None:
        state = conn.poll()
        if state == POLL_OK:
            return
        entry = entries.get(conn.fileno())
        if entry is not None:
            # By a name of its own: calling an attribute that is no method is slower.
            owner = entry.conn
            if (
                owner() is not conn
                or entry.thread != get_ident()
                or timeout is not None
            ):
                entry = None
        if entry is None:
            entry = find_entry(conn, state, timeout)
            if entry is None:
                return
        epoll_set = entry.epoll_set
        try:
            if entry.waiter is None:  # otherwise change() is about to refuse
                entry.since = epoll_set.now or monotonic()
            while True:
                if state != entry.state or entry.waiter is not None:
                    epoll_set.change(entry, state)
                # No call from the first of these up to the try block: a signal's
                # handler that raises would leave the wait counted.
                current = getcurrent()
                entry.waiter = current
                epoll_set.waiting += 1
                try:
                    if not epoll_set.held:
                        epoll_set.hold()
                    # Whoever switches back: poll() tells if it was in time.
                    if type(current) is epoll_set.plain and epoll_set.greenlet:
                        switch_to(epoll_set.greenlet)
                    else:
                        epoll_set.switch()
                finally:
                    entry.waiter = None
                    waiting = epoll_set.waiting = epoll_set.waiting - 1
                    if not waiting and epoll_set.held:
                        epoll_set.release()
                state = conn.poll()
                if state == POLL_OK:
                    return
        except BaseException as ex:
            if not failed(conn, entry, ex):
                raise
            wait(conn)

    return wait
