"""The loop that drives ``connection.poll()``, written once for every framework."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

import psycopg2
from greenlet import getcurrent
from psycopg2.extensions import (
    POLL_OK,
    POLL_READ,
    POLL_WRITE,
    STATUS_READY,
    connection,
)

from psycogreen import _native
from psycogreen._cancel import cancel
from psycogreen._deadline import STATUS_CONNECTING, ConnectWait
from psycogreen._epoll import (
    BUSY,
    IN_HUB,
    Entry,
    EpollSet,
    HubGone,
    entries,
    unknown_state,
)
from psycogreen._native import SocketWait
from psycogreen._stats import begin, is_interruption, note_interruption, under_way

get_ident = _native.original("_thread", "get_ident")
WaitCallback = TypeVar("WaitCallback", bound=Callable[..., None])


@dataclass(frozen=True)
class Framework:
    """How a framework waits."""

    wait_socket: SocketWait
    """Its own wait for any descriptor. In a native thread that has no loop it
    blocks the thread."""

    in_hub: Callable[[], bool]
    """Returns whether the current greenlet is the hub, which must not wait."""

    epoll_set: Callable[[], EpollSet | None]
    """Returns the epoll set of this thread's hub, if it has a hub and epoll."""


def wait_callback(framework: Framework) -> Callable[[WaitCallback], WaitCallback]:
    """Make a wait callback of *framework* from a function that is but its face.

    The function gives the name, the signature and the documentation.
    """

    def decorate(face: WaitCallback) -> WaitCallback:
        return cast(WaitCallback, functools.wraps(face)(_wait_callback(framework)))

    return decorate


def _wait_callback(  # noqa: C901
    framework: Framework,
) -> Callable[[connection, float | None], None]:
    """Return the callback: the loop that waits for queries.

    It runs for every query, and what it costs is what being green costs. So it is
    one function: the usual case straight through, everything else elsewhere.
    """

    def wait(conn: connection, timeout: float | None = None) -> None:  # noqa: C901
        state = conn.poll()
        if state != POLL_READ and state != POLL_WRITE:
            if state == POLL_OK:
                return
            raise unknown_state(state)
        entry = entries.get(conn.fileno())
        if (
            entry is None
            or entry.conn() is not conn
            or entry.thread != get_ident()
            or timeout is not None
        ):
            entry = _entry(conn, state, framework, timeout)
            if entry is None:
                return
        epoll_set = entry.epoll_set
        # By a name of its own: calling an attribute that is no method is slower.
        switch = epoll_set.switch
        entry.since = begin()
        try:
            while state != POLL_OK:
                if state != entry.state:
                    epoll_set.change(entry, state)
                if entry.waiter is not None:
                    raise psycopg2.ProgrammingError(BUSY)
                if not epoll_set.waiting:
                    epoll_set.loop.hold()
                epoll_set.waiting += 1
                entry.waiter = getcurrent()
                try:
                    switch()  # whoever switches back: poll() tells if it was in time
                finally:
                    entry.waiter = None
                    epoll_set.waiting -= 1
                    if not epoll_set.waiting:
                        epoll_set.loop.release()
                state = conn.poll()
        except HubGone:
            del entries[entry.fd]
            wait(conn)
        except BaseException as ex:
            # That is how the hubs themselves refuse to wait.
            if isinstance(ex, AssertionError) and framework.in_hub():
                raise psycopg2.ProgrammingError(IN_HUB) from ex
            # After a fork, the query is the parent's.
            if not epoll_set.abandoned:
                _interrupted(conn, framework, ex, entry.since)
            raise

    return wait


def _entry(
    conn: connection, state: int, framework: Framework, timeout: float | None
) -> Entry | None:
    """Return the entry of *conn* in the epoll set of this thread's hub.

    If it cannot be waited for there, wait for it otherwise and return ``None``.
    *state* is what its poll() has returned: while it connects, it must not be
    polled again before it was waited for.
    """
    if timeout is not None and timeout < 0:
        timeout = None
    # What only poll() is asked of is no less of a connection.
    if getattr(conn, "status", STATUS_READY) in STATUS_CONNECTING:
        _wait_connected(conn, state, framework, timeout)
        return None
    epoll_set = framework.epoll_set()
    if epoll_set is None or timeout is not None:
        _wait_answered(conn, state, framework, timeout)
        return None
    return epoll_set.entry(conn)


def _wait_answered(
    conn: connection, state: int, framework: Framework, timeout: float | None
) -> None:
    forks = _native.forks
    since = begin()
    try:
        _wait_socket(conn, state, framework.wait_socket, timeout, since)
    except BaseException as ex:
        if forks == _native.forks:
            _interrupted(conn, framework, ex, since)
        raise


def _interrupted(
    conn: connection, framework: Framework, ex: BaseException, since: float
) -> None:
    """Cancel the query, if it was interrupted by *ex*."""
    if is_interruption(ex):
        note_interruption(conn, ex, since)
        cancel(conn, framework.wait_socket, ex)


def _wait_connected(
    conn: connection, state: int, framework: Framework, timeout: float | None
) -> None:
    wait_socket = ConnectWait(conn, framework.wait_socket)
    since = begin()
    try:
        _wait_socket(conn, state, wait_socket, timeout, since)
    except BaseException as ex:
        if is_interruption(ex):
            note_interruption(conn, ex, since)
        if isinstance(ex, psycopg2.OperationalError):
            wait_socket.complete(ex)
        # psycopg2 leaves the socket open until the connection is collected, and
        # the traceback may keep it for long.
        if not conn.async_:
            conn.close()
        raise


def _wait_socket(
    conn: connection,
    state: int,
    wait_socket: SocketWait,
    timeout: float | None,
    since: float,
) -> None:
    """Wait with the framework's own wait: slower, but it can do anything."""
    under_way[conn] = since
    try:
        while state != POLL_OK:
            if state not in (POLL_READ, POLL_WRITE):
                raise unknown_state(state)
            # Ask for the descriptor each time: while it connects, libpq may move on
            # to another socket (the next host, or plain text after refused SSL).
            wait_socket(conn.fileno(), write=state == POLL_WRITE, timeout=timeout)
            state = conn.poll()
    finally:
        # Gone already if a fork has forgotten it.
        under_way.pop(conn, None)
