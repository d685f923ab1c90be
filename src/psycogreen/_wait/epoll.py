"""The cheapest wait: the sockets of a hub's connections, in one epoll set.

A framework makes a watcher for each wait and drops it afterwards, which costs
more than the query. Here a socket is put into an epoll set once and stays there
while its connection lives. The set has a descriptor of its own, and that one is
all that the framework's loop watches. What makes that safe:

- The set is level-triggered: one ``poll()`` need not empty the socket.
- A socket on which something happens while nobody waits, because the server
  has spoken or hung up, leaves the set, so that the loop does not spin. The
  connection's next wait puts it back.
- Between any two steps the garbage collector may run a destructor, or Python a
  signal's handler, that waits itself and so lets the loop run. Hence a wait looks
  whether all is prepared, notes who waits, and switches to the hub, and nothing can
  run in between.
- Descriptor numbers are used again. An entry is good for the connection object
  that made it alone, of which it keeps only a weak reference.
- The kernel drops a closed socket from the set by itself, unless somebody holds
  a duplicate: then its events go on, under a number that may be another's by
  now. A greenlet that is woken for nothing polls once more and waits again, and
  another set takes the place of this one (`_rebuild`).

An entry's *state* is what the kernel's set has of it: while it is not 0, the entry
is the one of its descriptor, and the descriptor is that of its connection.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import KeyedRef

import psycopg2
from psycopg2.extensions import POLL_READ, POLL_WRITE

from psycogreen._wait import forks
from psycogreen._wait.hub import HubGone
from psycogreen._wait.native import original
from psycogreen._wait.stats import counters, logger, sources, totals
from psycogreen._wait.twin import BaseSet, Entry, entries

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from psycogreen._wait.hub import Hub

BUSY = "another greenlet waits for this connection already"

NOWHERE = 0
"""The state of an entry that is not in the kernel's set."""

# Either of them, not both: while it writes, psycopg2 does not read, and a loop
# that reports what may be read would spin. The numbers are epoll's EPOLLIN and
# EPOLLOUT, which gevent removes from the select module.
_EVENTS = {POLL_READ: 1, POLL_WRITE: 4}

# What the kernel says of a descriptor that is closed, leads to a file by now, or is the
# set's own.
_LOST = (errno.EBADF, errno.EPERM, errno.EINVAL)


class EpollSet(BaseSet):
    """The sockets of one hub's connections. To be used in the hub's thread only."""

    def __init__(self, hub: Hub) -> None:
        """Let *hub* watch a new, empty set."""
        super().__init__(hub)
        self._pid = os.getpid()
        self._stuck = False
        self._epoll = _epoll()
        self.epoll_fd = self._epoll.fileno()
        hub.watch(self.epoll_fd, self.collect)
        _sets.add(self)

    def entry(self, conn: connection) -> Entry:
        """Return the entry of *conn*, which is connected.

        Raise `psycopg2.ProgrammingError` if another thread waits for it.
        """
        fd = conn.fileno()
        made = Entry(self, KeyedRef(conn, _forget_dead, fd), fd)
        while (found := entries.setdefault(fd, made)) is not made:
            if found.conn() is conn:
                if found.epoll_set is self:
                    return found
                if found.waiter is not None:
                    raise psycopg2.ProgrammingError(BUSY)
            found.state = NOWHERE
            forget(found)
            if found.epoll_set is self:
                self._notify(found)
        return made

    def _notify(self, entry: Entry) -> None:
        """Wake who waits for *entry*, soon: its socket is no more what it was."""
        self.hub.call_soon(partial(_wake, entry))

    def change(self, entry: Entry, state: int) -> None:
        """Let the kernel's set tell of *state* on the socket of *entry*.

        Raise `psycopg2.ProgrammingError` if somebody waits for it already, and
        `psycopg2.OperationalError` if it was closed meanwhile.
        """
        if entry.waiter is not None:
            raise psycopg2.ProgrammingError(BUSY)
        if state not in _EVENTS:
            raise unknown_state(state)
        if self.closed:
            raise HubGone
        if entry.state == NOWHERE:
            self._claim(entry)
        # Before the kernel knows: from then on the loop may take it out again.
        entry.state = state
        try:
            self._enter(entry.fd, _EVENTS[state])
        except OSError as ex:
            entry.state = NOWHERE
            if ex.errno in _LOST:
                raise _lost(entry) from ex
            raise

    def _claim(self, entry: Entry) -> None:
        """Make *entry* the one of its descriptor; raise if that is another's."""
        while (found := entries.setdefault(entry.fd, entry)) is not entry:
            if found.conn() is not entry.conn():
                raise _lost(entry)
            if found.waiter is not None:
                raise psycopg2.ProgrammingError(BUSY)
            found.state = NOWHERE
            forget(found)

    def _enter(self, fd: int, events: int) -> None:
        """Let the kernel's set tell of *events* on *fd*, whether it is there or not."""
        try:
            self._epoll.register(fd, events)
        except FileExistsError:
            self._epoll.modify(fd, events)

    def hold(self) -> None:
        """Keep the loop running: somebody waits. Raise what `Hub.hold` raises.

        In the middle of this, or of `release`, a signal's handler or a destructor may
        run that waits itself.
        """
        self.hub.hold(self)

    def release(self) -> None:
        """Let the loop end, unless somebody has begun to wait meanwhile."""
        self.hub.release(self)
        if self.waiting:
            self.hold()

    def settle(self) -> None:
        """Let the loop end if it is held for a wait that did not come about."""
        if self.held and not self.waiting:
            self.release()

    def check(self) -> bool:
        """Replace the kernel's set if it tells what is not true; return whether."""
        return not _are_ready(self._epoll.poll(0)) and self._rebuild()

    def remove(self, fd: int) -> None:
        """Take a socket that nobody waits for here out of the kernel's set."""
        if self.abandoned or self.closed:  # since the batch began
            return
        try:
            self._epoll.unregister(fd)
        except OSError:
            # Not the socket of this number: one that was closed here and lives on
            # as a duplicate. By number it cannot be had any more.
            self._rebuild()
            return
        entry = entries.get(fd)
        if entry and entry.epoll_set is self:
            entry.state = NOWHERE

    def _rebuild(self) -> bool:
        """Replace the kernel's set, without the sockets that nobody waits for.

        Called in the hub. If there is no descriptor left for another set, keep this
        one and return ``False``: what is wrong with it makes the loop try again.
        """
        try:
            fresh = _epoll()
            self.hub.watch(fresh.fileno(), self.collect)
        except OSError as ex:
            if not self._stuck:
                logger.warning("cannot replace an epoll set, will try again: %s", ex)
            self._stuck = True
            return False
        self._stuck = False
        stale, self._epoll = self._epoll, fresh
        self.epoll_fd = fresh.fileno()
        stale.close()
        for entry in self._own_entries():
            self._move(entry)
        return True

    def _move(self, entry: Entry) -> None:
        """Put the socket of *entry* into a new kernel's set if somebody waits for it."""
        state = entry.state
        entry.state = NOWHERE
        if entry.waiter is None:
            return  # back with its next wait
        try:
            self._enter(entry.fd, _EVENTS[state])
            entry.state = state
        except OSError:
            # If it still waits then, it is told what is wrong.
            self._notify(entry)

    def _own_entries(self) -> list[Entry]:
        return [entry for entry in list(entries.values()) if entry.epoll_set is self]

    @property
    def closed(self) -> bool:
        """Whether the set was closed: its hub or its thread has ended."""
        return self.epoll_fd < 0

    def close(self) -> None:
        """Give the descriptor back, and forget the connections; idempotent.

        In the thread of the hub, which runs no more. In a forked child, which sees
        its parent's other threads end, leave all to the parent.
        """
        if self.abandoned or self.closed:
            return
        if self._pid != os.getpid():
            self.abandon()
            return
        _sets.discard(self)
        totals.waits += self.ended
        self.ended = 0
        for entry in self._own_entries():
            entry.state = NOWHERE
            forget(entry)
        self.hub.unwatch()
        self.epoll_fd = -1
        self._epoll.close()

    def abandon(self) -> None:
        """Leave the set to the parent process, in a child that was just forked.

        The kernel's set is the same for both: what the child took out of it would
        be gone for the parent. The child's copies of the greenlets that wait are
        not woken any more. What they wait for is the parent's, which reads from
        the same sockets; nor may their end, when they are collected, reach the
        server: their descriptors lead nowhere from now on. Neither does the set's
        own: the child's loop may still watch it, and what nobody takes out would keep
        that loop spinning.
        """
        if self.abandoned or self.closed:
            return
        self.abandoned = True
        self.ended = 0
        _sets.discard(self)
        self.hub.release(self)
        # First, so that there is a descriptor for what follows.
        self._epoll.close()
        own = self._own_entries()
        for entry in own:
            entry.state = NOWHERE
            forget(entry)
        forks.disconnect(entry.fd for entry in own if entry.waiter is not None)
        self._epoll = _epoll()
        if self._epoll.fileno() != self.epoll_fd:
            os.dup2(self._epoll.fileno(), self.epoll_fd, inheritable=False)
            self._epoll.close()


def _wake(entry: Entry) -> None:
    waiter = entry.waiter
    if waiter is not None:
        waiter.switch()


def _forget_dead(reference: KeyedRef[int, connection]) -> None:
    """Drop the entry of a connection that is no more. Called in any thread."""
    entry = entries.get(reference.key)
    if entry and entry.conn is reference:
        forget(entry)


def forget(entry: Entry) -> None:
    """Drop *entry*, unless its descriptor is another one's by now.

    Other threads run while the kernel's set is changed.
    """
    if entries.get(entry.fd) is entry:
        del entries[entry.fd]


def unknown_state(state: object) -> psycopg2.OperationalError:
    """Return the error for what `connection.poll()` should never return."""
    return psycopg2.OperationalError(f"unknown state from connection.poll(): {state!r}")


def _lost(entry: Entry) -> psycopg2.OperationalError:
    return psycopg2.OperationalError(
        f"the connection's socket, descriptor {entry.fd}, was closed during a wait for it"
    )


# ---- the set of a thread -------------------------------------------------------


class _Keeper:
    """Keeps the set of a thread as long as the thread has that hub."""

    def __init__(self, hub: object, epoll_set: EpollSet) -> None:
        self.hub = hub
        self.epoll_set = epoll_set

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not is_finalizing():
            self.epoll_set.close()


class _Thread(original("_thread", "_local")):  # type: ignore[misc]
    keeper: _Keeper | None = None


_thread = _Thread()


def set_of_thread(hub: object, adapt: Callable[[], Hub]) -> EpollSet | None:
    """Return the epoll set of this thread, whose hub is *hub*; made on first use.

    *adapt* returns what the set needs of the hub. The set is closed when the thread
    ends or has another hub. ``None`` if the system has no epoll, or no descriptor left
    for a set; then the next call tries again.
    """
    keeper = _thread.keeper
    if keeper is not None and keeper.hub is hub:
        return keeper.epoll_set
    if not available():
        return None
    try:
        made = _Keeper(hub, EpollSet(adapt()))
    except OSError:
        return None
    # A destructor may have made one meanwhile, and others may wait in it.
    keeper = _thread.keeper
    if keeper is None or keeper.hub is not hub:
        _thread.keeper = keeper = made
    return keeper.epoll_set


# ---- all sets of the process ---------------------------------------------------

# Plain, so that it can be copied while another thread adds to it.
_sets: set[EpollSet] = set()


def _waiting_since() -> list[float]:
    return [entry.since for entry in list(entries.values()) if entry.waiter is not None]


def _ended() -> int:
    return sum(epoll_set.ended for epoll_set in list(_sets))


sources.append(_waiting_since)
counters.append(_ended)


@forks.after_in_child
def _after_fork() -> None:
    for epoll_set in list(_sets):
        epoll_set.abandon()
    _thread.keeper = None


def available() -> bool:
    """Return whether this system has epoll."""
    try:
        original("select", "epoll")
    except AttributeError:
        return False
    return True


def _epoll() -> Any:  # noqa: ANN401
    return original("select", "epoll")()


def _are_ready(events: list[tuple[int, int]]) -> bool:
    """Return whether the sockets that epoll tells of are those of these numbers."""
    poll = original("select", "poll")()
    for fd, mask in events:
        poll.register(fd, mask)
    return len(poll.poll(0)) == len(events)
