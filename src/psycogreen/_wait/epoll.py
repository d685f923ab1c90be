"""The fast path of a wait: one epoll set with the sockets of all of a hub's connections.

A framework makes a watcher for each wait and drops it afterwards, which costs more than
the query. Here a socket is added to an epoll set once and stays there while its
connection lives. The framework's loop watches only the descriptor of the set. These
rules make that safe:

- The set is level-triggered: one ``poll()`` need not empty the socket.
- If a socket becomes ready while no greenlet waits for it, because the server has sent
  something or closed the session, it is removed from the set, so that the loop does not
  spin. The connection's next wait adds it again.
- Between any two steps the garbage collector may run a destructor, or Python a signal
  handler, that waits itself and so lets the loop run. Therefore a wait checks its
  preparations, records the waiter, and switches to the hub, and no other code can run
  between these three.
- Descriptor numbers are reused. An entry is valid only for the connection object that it
  was made for, to which it is a weak reference.
- The kernel removes a closed socket from the set by itself, unless a duplicate exists.
  Then its events go on under a number that may belong to another socket. A greenlet that
  is woken without reason polls and waits again, and a new set replaces this one
  (`_rebuild`).

An entry's *state* is what the kernel's set holds for it. While it is not 0, the entry is
the one of its descriptor in `entries`, and the descriptor is the one of its connection.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.extensions import POLL_READ, POLL_WRITE

from psycogreen._wait import forks
from psycogreen._wait.hub import HubGone
from psycogreen._wait.native import original
from psycogreen._wait.stats import counters, logger, sources, totals
from psycogreen._wait.twin import BaseSet, Entry, entries, forget

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from psycogreen._wait.hub import Hub

BUSY = "another greenlet waits for this connection already"

NOWHERE = 0
"""The state of an entry that is not in the kernel's set."""

# One of them, never both: psycopg2 does not read while it writes, so the loop would spin
# if it reported a readable socket. The numbers are epoll's EPOLLIN and EPOLLOUT, which
# gevent removes from the select module.
_EVENTS = {POLL_READ: 1, POLL_WRITE: 4}

# The kernel's errors for a descriptor that is closed, refers to a file now, or is the
# set's own.
_LOST = (errno.EBADF, errno.EPERM, errno.EINVAL)


class EpollSet(BaseSet):
    """The sockets of one hub's connections. Use it only in the hub's thread."""

    def __init__(self, hub: Hub) -> None:
        """Make an empty set, and let *hub* watch it."""
        super().__init__(hub)
        self._pid = os.getpid()
        self._stuck = False
        self._epoll = _epoll()
        self.epoll_fd = self._epoll.fileno()
        hub.watch(self.epoll_fd, self.collect)
        _sets.add(self)

    def place(self, made: Entry, conn: connection) -> Entry:
        """Make *made* the entry of its descriptor, unless *conn* has one; return that.

        Raise `psycopg2.ProgrammingError` if another thread waits for *conn*.
        """
        while (found := entries.setdefault(made.fd, made)) is not made:
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

    def follow(self, entry: Entry, conn: connection) -> None:
        """Make *entry* the one of the socket that its connection *conn* has now."""
        forget(entry)
        entry.fd = conn.fileno()
        self.place(entry, conn)

    def _notify(self, entry: Entry) -> None:
        """Wake the waiter of *entry* soon, since its socket has changed."""
        self.hub.call_soon(partial(_wake, entry))

    def change(self, entry: Entry, state: int) -> None:
        """Make the kernel's set report *state* for the socket of *entry*.

        Raise `psycopg2.ProgrammingError` if another greenlet waits for it already, and
        `psycopg2.OperationalError` if the socket was closed meanwhile.
        """
        if entry.waiter is not None:
            raise psycopg2.ProgrammingError(BUSY)
        if state not in _EVENTS:
            raise unknown_state(state)
        if self.epoll_fd < 0:  # closed
            raise HubGone
        if entry.state == NOWHERE and entries.get(entry.fd) is not entry:
            self._claim(entry)
        try:
            self._report(entry, state)
        except ValueError:
            # Closed since then: a destructor has made the set of the thread's new hub.
            entry.state = NOWHERE
            raise HubGone from None
        except OSError as ex:
            entry.state = NOWHERE
            if ex.errno in _LOST:
                raise _lost(entry) from ex
            raise

    def _report(self, entry: Entry, state: int) -> None:
        """Make the kernel's set report *state* for the socket of *entry*."""
        while True:
            # Set the state first: as soon as the kernel has the socket, the loop may
            # remove it.
            entry.state = state
            try:
                self._epoll.register(entry.fd, _EVENTS[state])
            except FileExistsError:
                pass
            else:
                return
            try:
                self._epoll.modify(entry.fd, _EVENTS[state])
            except FileNotFoundError:  # the loop has just removed it
                continue
            return

    def _claim(self, entry: Entry) -> None:
        """Make *entry* the one of its descriptor; raise if another thread's entry is."""
        while (found := entries.setdefault(entry.fd, entry)) is not entry:
            if found.conn() is not entry.conn():
                raise _lost(entry)
            if found.waiter is not None:
                raise psycopg2.ProgrammingError(BUSY)
            found.state = NOWHERE
            forget(found)

    def hold(self) -> None:
        """Keep the loop running, since a greenlet waits. Raise what `Hub.hold` raises.

        During this, or `release`, a signal handler or a destructor that waits itself may
        run.
        """
        self.hub.hold(self)

    def release(self) -> None:
        """Let the loop end, unless a greenlet has begun to wait meanwhile."""
        self.hub.release(self)
        if self.waiting:
            self.hold()

    def settle(self) -> None:
        """Let the loop end if it is held for a wait that has failed to start."""
        if self.held and not self.waiting:
            self.release()

    def check(self) -> bool:
        """Rebuild the kernel's set if it reports stale events; return whether it did."""
        return not _are_ready(self._epoll.poll(0)) and self._rebuild()

    def remove(self, fd: int) -> None:
        """Remove a socket that no greenlet waits for here from the kernel's set."""
        if self.abandoned or self.closed:  # since the batch began
            return
        try:
            self._epoll.unregister(fd)
        except OSError:
            # The event belongs to a socket that was closed here, but has a duplicate.
            # It cannot be removed by its number any more.
            self._rebuild()
            return
        entry = entries.get(fd)
        if entry and entry.epoll_set is self:
            entry.state = NOWHERE

    def _rebuild(self) -> bool:
        """Replace the kernel's set by one with only the sockets that greenlets wait for.

        Called in the hub. If no descriptor is left for a new set, keep the old one and
        return ``False``: its stale event makes the loop try again.
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
        """Add the socket of *entry* to a new kernel's set if a greenlet waits for it."""
        state = entry.state
        entry.state = NOWHERE
        if entry.waiter is None:
            return  # its next wait adds it again
        try:
            self._epoll.register(entry.fd, _EVENTS[state])
            entry.state = state
        except OSError:
            # The waiter will poll again; if it still waits, change() raises the error.
            self._notify(entry)

    def _own_entries(self) -> list[Entry]:
        return [entry for entry in list(entries.values()) if entry.epoll_set is self]

    @property
    def closed(self) -> bool:
        """Whether the set was closed: its hub or its thread has ended."""
        return self.epoll_fd < 0

    def close(self) -> None:
        """Close the descriptor and drop the connections; idempotent.

        Called in the thread of the hub, which has ended. Does nothing in a forked child,
        where the parent's other threads seem to end: the set is the parent's.
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

        Parent and child share the kernel's set: a socket that the child removed would be
        gone for the parent too. The child's copies of the waiting greenlets are not
        woken any more, because the parent reads from the same sockets. When the copies
        are collected, nothing may reach the server, so their descriptors are replaced.
        The set's descriptor is replaced too: the child's loop may still watch it, and
        would spin on a socket that is ready.
        """
        if self.abandoned or self.closed:
            return
        self.abandoned = True
        self.ended = 0
        _sets.discard(self)
        self.hub.release(self)
        # Close it first, so that a descriptor is free for the next step.
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


def unknown_state(state: object) -> psycopg2.OperationalError:
    """Return the error for a result of `connection.poll()` that is not documented."""
    return psycopg2.OperationalError(f"unknown state from connection.poll(): {state!r}")


def _lost(entry: Entry) -> psycopg2.OperationalError:
    return psycopg2.OperationalError(
        f"the connection's socket, descriptor {entry.fd}, was closed during a wait for it"
    )


# ---- the set of a thread -------------------------------------------------------


class _ThreadSet:
    """The epoll set of a thread: closed when the thread ends or gets another hub."""

    def __init__(self, hub: object, epoll_set: EpollSet) -> None:
        self.hub = hub
        self.epoll_set = epoll_set

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not is_finalizing():
            self.epoll_set.close()


class _ThreadData(original("_thread", "_local")):  # type: ignore[misc]
    own: _ThreadSet | None = None


_thread = _ThreadData()


def set_in_use() -> EpollSet | None:
    """Return the epoll set that this thread has, if any, whose hub may be gone."""
    own = _thread.own
    return None if own is None else own.epoll_set


def set_of_thread(hub: object, adapt: Callable[[], Hub]) -> EpollSet | None:
    """Return the epoll set of this thread, whose hub is *hub*; make it on first use.

    *adapt* returns the set's interface to the hub. The set is closed when the thread
    ends or gets another hub. Return ``None`` if the system has no epoll, or no descriptor
    is left for a set; in the latter case the next call tries again.
    """
    own = _thread.own
    if own is not None and own.hub is hub:
        return own.epoll_set
    if not available():
        return None
    try:
        made = _ThreadSet(hub, EpollSet(adapt()))
    except OSError:
        return None
    # A destructor may have made a set meanwhile, which greenlets may wait with.
    own = _thread.own
    if own is None or own.hub is not hub:
        _thread.own = own = made
    return own.epoll_set


# ---- all sets of the process ---------------------------------------------------

# A plain set, not a WeakSet: it can be copied while another thread adds to it.
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
    _thread.own = None


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
    """Return whether the reported descriptors are ready, so that no event is stale."""
    poll = original("select", "poll")()
    for fd, mask in events:
        poll.register(fd, mask)
    return len(poll.poll(0)) == len(events)
