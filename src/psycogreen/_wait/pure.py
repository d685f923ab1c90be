"""The fast path of a wait, in Python. Its twin in C is _speedups.c."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from time import monotonic
from typing import TYPE_CHECKING, Any, Self
from weakref import ref

from psycopg2.extensions import POLL_OK, POLL_WRITE

from psycogreen._wait import native

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from psycogreen._wait.deadline import Attempt
    from psycogreen._wait.hub import Hub

    Wait = Callable[[connection, float | None], None]
    FindEntry = Callable[[connection, int, float | None], "Entry | None"]
    Failed = Callable[[connection, "Entry", BaseException], bool]

CHECK_INTERVAL = 1000
"""Every so many batches of events, one is checked for stale events."""

# uWSGI's uGreen does not use this path, and works without greenlet.
with contextlib.suppress(ModuleNotFoundError):
    from greenlet import getcurrent, greenlet

    switch_to = greenlet.switch

BATCH = 64
"""The maximum number of events in a batch; the loop finds the rest in its next turn."""


class ThreadData(native.original("_thread", "_local")):  # type: ignore[misc]
    """The data of each thread."""

    def __init__(self) -> None:
        """Initialise the data; called in each thread at its first use."""
        self.token = object()
        """Identifies the thread. (Thread numbers are reused.)"""


this_thread = ThreadData()


class BaseSet:
    """The part of an epoll set that every wait touches."""

    def __init__(self, hub: Hub) -> None:
        """Belong to *hub*."""
        self.hub = hub
        self.greenlet = hub.greenlet
        self.plain = hub.plain
        self.switch = hub.switch
        self.releases_late = hub.releases_late
        self.thread = this_thread.token
        self.waiting = 0
        """How many greenlets wait."""
        self.held = False
        """Whether the loop was told to keep running for them."""
        self.ended = 0
        """How many waits have ended."""
        self.now = 0.0
        """The time of `time.monotonic` while greenlets are woken, else 0."""
        self.abandoned = False
        self.epoll_fd = -1
        self._epoll: Any = None
        self._collected = 0
        collecting = self._collecting()
        next(collecting)
        self.collect: Callable[[object], None] = collecting.send
        """Wake the greenlets whose sockets are ready. Called in the hub; the argument is
        ignored.

        It raises no exception, after which the hub would stop watching: the hub's
        `handle_error` reports it, and raises it only if the loop must end.
        """

    def _collecting(self) -> Generator[None, object, None]:
        # A generator, because a signal handler may raise in the first instruction of a
        # function. In the generator, that is inside the try block.
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
                # Look it up for each event: the previous greenlet may have killed it.
                waiter = entry.waiter if entry and entry.epoll_set is self else None
                if entry is None or waiter is None:
                    self.remove(fd)
                    continue
                # To connect is one wait, which is counted at its end.
                ended += entry.attempt is None
                try:
                    waiter.switch()
                except BaseException as ex:  # noqa: BLE001
                    self.hub.handle_error(ex)
        finally:
            self.now = 0.0
            self.ended += ended
            if self.held and not self.waiting:
                self.release()

    def entry(self, conn: connection) -> Entry:
        """Return the entry of *conn*, which is made if it has none here.

        Raise `psycopg2.ProgrammingError` if another thread waits for *conn*.
        """
        made = Entry(self, conn, conn.fileno())
        if entries.setdefault(made.fd, made) is made:
            return made
        return self.place(made, conn)

    def wait(self, entry: Entry, state: int) -> None:
        """Let the hub run until it switches back for the socket of *entry*.

        *state* is what ``poll()`` has asked for. The caller sets the entry's *since*.
        Raise what `change`, `hold` and the hub's ``switch`` raise.
        """
        current = getcurrent()
        # No call between these checks and the switch. In a call, a destructor or a
        # signal handler may let the loop run, which removes a socket that no greenlet
        # waits for.
        while True:
            if state != entry.state or entry.waiter is not None:
                self.change(entry, state)
            elif not self.held:
                self.hold()
            else:
                break
        entry.waiter = current
        self.waiting += 1
        try:
            # Any greenlet may switch back: poll() shows whether it was too early.
            if type(current) is self.plain and self.greenlet:
                switch_to(self.greenlet)
            else:
                self.switch()
        finally:
            entry.waiter = None
            waiting = self.waiting = self.waiting - 1
            # While greenlets are woken this may be left to the end: most of them wait
            # again at once.
            if not waiting and self.held and not (self.now and self.releases_late):
                self.release()

    def connect(self, conn: connection, entry: Entry, state: int) -> None:
        """Wait until *conn*, whose entry is *entry* and which connects, is established.

        *state* is what ``poll()`` has asked for. Raise what it and `wait` raise.
        """
        while state != POLL_OK:
            self._wait_connecting(conn, entry, state)
            state = conn.poll()
        entry.attempt = None
        self.ended += 1

    def _wait_connecting(self, conn: connection, entry: Entry, state: int) -> None:
        fd = conn.fileno()
        # libpq may have changed to another socket, also to one of the same number: make
        # change() ask the kernel.
        entry.state = 0
        if fd != entry.fd:
            self.follow(entry, conn)
        if state != POLL_WRITE:
            self.wait(entry, state)
            return
        # libpq takes the socket for connected when it is polled, and any greenlet may
        # switch back. (To poll early for a read is harmless.)
        while not native.is_writable(fd):
            self.wait(entry, state)

    # The slow path: see `psycogreen._wait.epoll.EpollSet`.

    def place(self, made: Entry, conn: connection) -> Entry:
        raise NotImplementedError

    def follow(self, entry: Entry, conn: connection) -> None:
        raise NotImplementedError

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


class Entry(ref):  # type: ignore[type-arg]
    """A connection's socket in a set; a weak reference to the connection."""

    __slots__ = ("attempt", "epoll_set", "fd", "since", "state", "waiter")

    def __new__(cls, _epoll_set: BaseSet, conn: connection, _fd: int) -> Self:
        """Refer to *conn*."""
        return super().__new__(cls, conn, forget)

    def __init__(self, epoll_set: BaseSet, _conn: connection, fd: int) -> None:
        """Make the entry in *epoll_set* of a connection, whose descriptor is *fd*."""
        self.epoll_set = epoll_set
        self.fd = fd
        self.state = 0
        """What the kernel's set reports for this socket: ``POLL_READ``, ``POLL_WRITE``,
        or 0 if the socket is not in the set."""
        self.waiter: greenlet | None = None
        self.attempt: Attempt | None = None
        """The attempt to connect, until the connection is established."""
        self.since = 0.0
        """When its last wait began, in the time of `time.monotonic`. A greenlet that was
        just woken uses the time of its batch, which is cheaper."""

    def conn(self) -> connection | None:
        """Return the connection, or ``None`` if it was collected."""
        found: connection | None = self()
        return found


entries: dict[int, Entry] = {}
"""The entries of all sets by descriptor. Descriptors are reused: check that an entry
belongs to the right connection and set."""


def forget(entry: Entry, entries: dict[int, Entry] = entries) -> None:
    """Drop *entry*, unless its descriptor belongs to another entry now.

    That can happen: other threads run while the kernel's set is changed. Also called, in
    any thread, when its connection was collected: at exit, when this module may be gone.
    """
    # No call between these steps. After a call another thread may run, and wait for a new
    # connection with this descriptor, whose entry would be dropped.
    if entry.fd in entries and entries[entry.fd] is entry:
        del entries[entry.fd]


polls: dict[int, Callable[[], int]] = {}
"""Functions that replace a connection's ``poll()`` during a wait, by the connection's
`id`. COPY uses it: the transfer of its data is part of the wait. Set it before the wait
begins, and remove it afterwards."""


def poll_otherwise(conn: connection) -> int:
    """Call the function in *polls* for *conn* if there is one, else ``conn.poll()``."""
    return polls.get(id(conn), conn.poll)()


def make_wait(find_entry: FindEntry, failed: Failed) -> Wait:  # noqa: C901
    """Return the wait callback: the loop that waits for queries.

    It runs for every query, so its cost is the cost of being green. Therefore it is one
    function with the usual case inline and everything else elsewhere.

    *find_entry* returns the entry of a connection that has none here; it returns ``None``
    if it has done the whole wait by other means. *failed* is called with the exception
    that ends a wait; it returns whether to wait again instead of raising it.
    """

    def wait(  # noqa: C901
        conn: connection, timeout: float | None = None
    ) -> None:
        state = poll_otherwise(conn) if polls else conn.poll()
        if state == POLL_OK:
            return
        entry = entries.get(conn.fileno())
        if entry is not None and (
            entry() is not conn
            or entry.attempt is not None
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
            if entry.waiter is None:  # otherwise change() will raise
                entry.since = epoll_set.now or monotonic()
            if entry.attempt is not None:
                epoll_set.connect(conn, entry, state)
                return
            while True:
                epoll_set.wait(entry, state)
                state = poll_otherwise(conn) if polls else conn.poll()
                if state == POLL_OK:
                    return
        except BaseException as ex:
            if not failed(conn, entry, ex):
                raise
            wait(conn)

    return wait
