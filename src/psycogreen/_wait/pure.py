"""What runs for every query, in Python. Its twin in C is _speedups.c."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from time import monotonic
from typing import TYPE_CHECKING, Any

from psycopg2.extensions import POLL_OK

from psycogreen._wait import native

if TYPE_CHECKING:
    from weakref import ref

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


class Thread(native.original("_thread", "_local")):  # type: ignore[misc]
    """What each thread has of its own."""

    def __init__(self) -> None:
        """Be called in each thread at its first use."""
        self.token = object()
        """Stands for the thread. Its number would be used again."""


this_thread = Thread()


class BaseSet:
    """The part of an epoll set that every wait touches."""

    def __init__(self, hub: Hub) -> None:
        """Belong to *hub*."""
        self.hub = hub
        self.greenlet = hub.greenlet
        self.plain = hub.plain
        self.switch = hub.switch
        self.thread = this_thread.token
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
        collecting = self._collecting()
        next(collecting)
        self.collect: Callable[[object], None] = collecting.send
        """Wake the greenlets whose sockets are ready. Called in the hub, with anything.

        No exception comes out of it, or the hub would stop watching: the hub reports
        it, and may raise only if its loop has to end.
        """

    def _collecting(self) -> Generator[None, object, None]:
        # A generator, since a signal's handler may raise in the first step of a
        # function already. Here that is within the try block.
        while True:
            try:
                yield
                self._collect()
            except GeneratorExit:
                return
            except BaseException as ex:  # noqa: BLE001
                self.hub.handle_error(ex)

    def _collect(self) -> None:
        if self.abandoned:
            self.hub.release(self)
            return
        if self.epoll_fd < 0:
            return
        self._collected += 1
        if self._collected % CHECK_INTERVAL == 0 and self.check():
            return
        ended = 0
        self.now = monotonic()
        try:
            for fd, _ in self._epoll.poll(0, BATCH):
                entry = entries.get(fd)
                # Asked again for each: the one before may have killed this one.
                waiter = entry.waiter if entry and entry.epoll_set is self else None
                if waiter is None:
                    self.remove(fd)
                    continue
                ended += 1
                try:
                    waiter.switch()
                except BaseException as ex:  # noqa: BLE001
                    self.hub.handle_error(ex)
        finally:
            self.now = 0.0
            self.ended += ended

    # What is unusual: see `psycogreen._wait.epoll.EpollSet`.

    def change(self, entry: Entry, state: int) -> None:
        raise NotImplementedError

    def hold(self) -> None:
        raise NotImplementedError

    def settle(self) -> None:
        raise NotImplementedError

    def release(self) -> None:
        raise NotImplementedError

    def check(self) -> bool:
        raise NotImplementedError

    def remove(self, fd: int) -> None:
        raise NotImplementedError


class Entry:
    """A connection's socket in a set."""

    __slots__ = ("conn", "epoll_set", "fd", "since", "state", "waiter")

    def __init__(self, epoll_set: BaseSet, conn: ref[connection], fd: int) -> None:
        """Belong to *conn*, until another one has the same descriptor *fd*."""
        self.epoll_set = epoll_set
        self.conn = conn
        self.fd = fd
        self.state = 0
        """What the kernel's set tells of this socket, in psycopg2's terms; 0 if it is
        not there."""
        self.waiter: greenlet | None = None
        self.since = 0.0
        """When its last wait began: `time.monotonic`, or for a greenlet just woken
        the time when its loop looked, which costs less to know."""


entries: dict[int, Entry] = {}
"""The entries of all sets by descriptor. One that is found by its number has to
be asked whose it is: which connection's, and which set's."""

polls: dict[int, Callable[[], int]] = {}
"""What is called in place of a connection's ``poll()``, by the connection's `id`: what
follows the answer on the wire, as in a COPY, is part of the wait. To be set before the
wait begins, and taken away after it."""


def poll_otherwise(conn: connection) -> int:
    """Return what the one in *polls* returns if there is one, else ``conn.poll()``."""
    return polls.get(id(conn), conn.poll)()


def make_wait(find_entry: FindEntry, failed: Failed) -> Wait:  # noqa: C901
    """Return the callback: the loop that waits for queries.

    It runs for every query, and what it costs is what being green costs. So it is
    one function: the usual case straight through, everything else elsewhere.

    *find_entry* returns the entry of a connection that has none here, or has done
    the waiting otherwise if it returns ``None``. *failed* is called with what ends a
    wait; it returns whether to wait again instead of raising it.
    """

    def wait(  # noqa: C901
        conn: connection, timeout: float | None = None
    ) -> None:
        state = poll_otherwise(conn) if polls else conn.poll()
        if state == POLL_OK:
            return
        entry = entries.get(conn.fileno())
        if entry is not None:
            # By a name of its own: calling an attribute that is no method is slower.
            owner = entry.conn
            if (
                owner() is not conn
                or entry.epoll_set.thread is not this_thread.token
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
            current = getcurrent()
            kind = type(current)
            while True:
                # No call from the last look at what has to be up to the switch. In a
                # call a destructor or a signal's handler may run, and let the loop
                # run, which takes a socket out that nobody waits for.
                while True:
                    if state != entry.state or entry.waiter is not None:
                        epoll_set.change(entry, state)
                    elif not epoll_set.held:
                        epoll_set.hold()
                    else:
                        break
                entry.waiter = current
                epoll_set.waiting += 1
                try:
                    # Any greenlet may switch back: poll() tells whether it was in time.
                    if kind is epoll_set.plain and epoll_set.greenlet:
                        switch_to(epoll_set.greenlet)
                    else:
                        epoll_set.switch()
                finally:
                    entry.waiter = None
                    waiting = epoll_set.waiting = epoll_set.waiting - 1
                    if not waiting and epoll_set.held:
                        epoll_set.release()
                state = poll_otherwise(conn) if polls else conn.poll()
                if state == POLL_OK:
                    return
        except BaseException as ex:
            if not failed(conn, entry, ex):
                raise
            wait(conn)

    return wait
