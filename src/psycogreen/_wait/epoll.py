"""The cheapest wait: the sockets of a hub's connections, in one epoll set.

A framework makes a watcher for each wait and drops it afterwards, which costs
more than the query. Here a socket is put into an epoll set once and stays there
while its connection lives. The set has a descriptor of its own, and that one is
all that the framework's loop watches. What makes that safe:

- The set is level-triggered: one ``poll()`` need not empty the socket.
- A socket on which something happens while nobody waits, because the server
  has spoken or hung up, leaves the set, lest the loop spin. It is put back by
  the connection's next wait.
- Descriptor numbers are used again. An entry is good for the connection object
  that made it alone, of which it keeps but a weak reference.
- The kernel drops a closed socket from the set by itself, unless somebody holds
  a duplicate: then its events go on, under a number that may be another's by
  now. Whoever is woken for nothing polls once more and waits again, and the set
  is made anew (`_rebuild`).
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.extensions import POLL_READ, POLL_WRITE

from psycogreen._wait import forks
from psycogreen._wait.native import original
from psycogreen._wait.stats import counters, sources, totals
from psycogreen._wait.twin import BaseSet, Entry, entries

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from psycogreen._wait.hub import Hub

BUSY = "another greenlet waits for this connection already"

# Either of them, not both: while it writes, psycopg2 does not read, and a loop
# that reports what may be read would spin. The numbers are epoll's EPOLLIN and
# EPOLLOUT, which gevent removes from the select module.
_EVENTS = {POLL_READ: 1, POLL_WRITE: 4}


class EpollSet(BaseSet):
    """The sockets of one hub's connections. To be used in the hub's thread only."""

    def __init__(self, hub: Hub) -> None:
        """Let *hub* watch a new, empty set."""
        super().__init__(hub)
        self._thread = _get_ident()
        self._open()
        hub.watch(self.epoll_fd, self.collect)
        _sets.add(self)

    def __del__(self) -> None:
        """Leave behind how many waits have ended."""
        if not self.abandoned:
            totals.waits += self.ended

    def _open(self) -> None:
        self._epoll = _epoll()
        self.epoll_fd = self._epoll.fileno()

    def entry(self, conn: connection) -> Entry:
        """Return the entry of *conn*, which is connected; put it in if it is not.

        Raise `psycopg2.ProgrammingError` if another thread waits for it.
        """
        fd = conn.fileno()
        entry = entries.get(fd)
        if entry and entry.conn() is conn:
            if entry.epoll_set is self:
                return entry
            if entry.waiter is not None:
                raise psycopg2.ProgrammingError(BUSY)
        try:
            self._epoll.register(fd, _EVENTS[POLL_READ])
        except FileExistsError:
            # It was here before another thread's hub had it.
            self._epoll.modify(fd, _EVENTS[POLL_READ])
        entry = entries[fd] = Entry(self, self._thread, conn, fd)
        return entry

    def change(self, entry: Entry, state: int) -> None:
        """Wait for something else on a socket from now on.

        Raise `psycopg2.ProgrammingError` if somebody else waits for it already.
        """
        if entry.waiter is not None:
            raise psycopg2.ProgrammingError(BUSY)
        if state not in _EVENTS:
            raise unknown_state(state)
        self._epoll.modify(entry.fd, _EVENTS[state])
        entry.state = state

    def hold(self) -> None:
        """Keep the loop running: somebody waits. Raise what `Hub.hold` raises.

        Who waits is counted before. In the middle of this, or of `release`, a
        signal's handler or a destructor may run that waits itself.
        """
        self.hub.hold()
        self.held = True

    def release(self) -> None:
        """Let the loop end, unless somebody has begun to wait meanwhile."""
        self.held = False
        self.hub.release()
        if self.waiting:
            self.hold()

    def check(self) -> bool:
        """Make the set anew if it tells what is not true; return whether it did."""
        if _are_ready(self._epoll.poll(0)):
            return False
        self._rebuild()
        return True

    def remove(self, fd: int) -> None:
        """Have no more of a socket that nobody waits for here."""
        if self.abandoned:  # by a fork since the batch began
            return
        entry = entries.get(fd)
        if entry and entry.epoll_set is self:
            forget(entry)
        try:
            self._epoll.unregister(fd)
        except OSError:
            # Not the socket of this number: one that was closed here and lives on
            # as a duplicate. By number it cannot be had any more.
            self._rebuild()

    def _rebuild(self) -> None:
        """Make the set anew, without the sockets that nobody waits for."""
        stale = self._epoll
        self._open()
        for entry in self._own_entries():
            if entry.waiter is None:
                forget(entry)  # back with its next wait
            else:
                self._epoll.register(entry.fd, _EVENTS[entry.state])
        self.hub.watch(self.epoll_fd, self.collect)
        stale.close()

    def _own_entries(self) -> list[Entry]:
        return [entry for entry in list(entries.values()) if entry.epoll_set is self]

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
        self.abandoned = True
        self.ended = 0
        self.hub.forget()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for entry in self._own_entries():
            del entries[entry.fd]
            if entry.waiter is not None:
                os.dup2(nowhere, entry.fd, inheritable=False)
        os.close(nowhere)
        with _epoll() as empty:
            os.dup2(empty.fileno(), self.epoll_fd, inheritable=False)


def forget(entry: Entry) -> None:
    """Drop *entry*, unless its descriptor is another one's by now.

    Other threads run while the kernel's set is changed.
    """
    if entries.get(entry.fd) is entry:
        del entries[entry.fd]


def unknown_state(state: object) -> psycopg2.OperationalError:
    """Return the error for what `connection.poll()` should never return."""
    return psycopg2.OperationalError(f"unknown state from connection.poll(): {state!r}")


def _waiting_since() -> list[float]:
    return [entry.since for entry in list(entries.values()) if entry.waiter is not None]


def _ended() -> int:
    return sum(epoll_set.ended for epoll_set in list(_sets))


sources.append(_waiting_since)
counters.append(_ended)

_sets: weakref.WeakSet[EpollSet] = weakref.WeakSet()


@forks.after_in_child
def _after_fork() -> None:
    for epoll_set in list(_sets):
        epoll_set.abandon()
    _sets.clear()


def available() -> bool:
    """Return whether this system has epoll."""
    try:
        _epoll().close()
    except AttributeError:
        return False
    return True


_get_ident = original("_thread", "get_ident")


def _epoll() -> Any:  # noqa: ANN401
    return original("select", "epoll")()


def _are_ready(events: list[tuple[int, int]]) -> bool:
    """Return whether the sockets that epoll tells of are those of these numbers."""
    poll = original("select", "poll")()
    for fd, mask in events:
        poll.register(fd, mask)
    return len(poll.poll(0)) == len(events)
