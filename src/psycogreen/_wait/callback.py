"""The loop that drives ``connection.poll()``, written once for every framework."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TypeVar, cast

import psycopg2
from psycopg2.extensions import (
    POLL_OK,
    POLL_READ,
    POLL_WRITE,
    STATUS_READY,
    connection,
)

from psycogreen._wait import forks
from psycogreen._wait.cancel import cancel
from psycogreen._wait.deadline import (
    STATUS_CONNECTING,
    Attempt,
    ConnectWait,
    take_attempt,
)
from psycogreen._wait.epoll import NOWHERE, EpollSet, forget, unknown_state
from psycogreen._wait.hub import HubGone, InHub
from psycogreen._wait.native import SocketWait
from psycogreen._wait.stats import (
    Wait,
    is_interruption,
    note_interruption,
    totals,
    under_way,
)
from psycogreen._wait.twin import Entry, make_wait, polls

WaitCallback = TypeVar("WaitCallback", bound=Callable[..., None])


@dataclass(frozen=True)
class Framework:
    """How a framework waits."""

    wait_socket: SocketWait
    """Its own wait for any descriptor. In a native thread that has no loop it
    blocks the thread, and in the hub it is `psycogreen._wait.hub.wait_in_hub`."""

    epoll_set: Callable[[], EpollSet | None]
    """Returns the epoll set of this thread's hub, if it has a hub and epoll."""


def wait_callback(framework: Framework) -> Callable[[WaitCallback], WaitCallback]:
    """Make a wait callback of *framework* from a function that is but its face.

    The function gives the name, the signature and the documentation.
    """

    def decorate(face: WaitCallback) -> WaitCallback:
        find_entry = partial(_entry, framework)
        wait = make_wait(find_entry, partial(_failed, framework))
        return cast(WaitCallback, functools.wraps(face)(wait))

    return decorate


def _failed(
    framework: Framework, conn: connection, entry: Entry, ex: BaseException
) -> bool:
    """Do what is to be done when *ex* ends a wait; return whether to wait again.

    It is being handled meanwhile, in C too. (Not by C itself, which would have to
    restore what a generator's caller handles.)
    """
    traceback = ex.__traceback__
    try:
        raise ex
    except BaseException:  # noqa: BLE001
        return _is_to_wait_again(framework, conn, entry, ex)
    finally:
        ex.__traceback__ = traceback


def _is_to_wait_again(
    framework: Framework, conn: connection, entry: Entry, ex: BaseException
) -> bool:
    epoll_set = entry.epoll_set
    epoll_set.settle()
    if isinstance(ex, HubGone):
        entry.state = NOWHERE
        forget(entry)
        return True
    if isinstance(ex, InHub):
        _wait_answered(conn, entry.state, framework, None)
        return True
    # After a fork, the query is the parent's.
    if not epoll_set.abandoned:
        if is_interruption(ex):
            epoll_set.ended += 1
        _interrupted(conn, framework, ex, entry.since)
    return False


def _entry(
    framework: Framework, conn: connection, state: int, timeout: float | None
) -> Entry | None:
    """Return the entry of *conn* in the epoll set of this thread's hub.

    If it cannot be waited for there, wait for it otherwise and return ``None``.
    *state* is what its poll() has returned: while it connects, it must not be
    polled again before it was waited for.
    """
    if state not in (POLL_READ, POLL_WRITE):
        raise unknown_state(state)
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
    before = forks.count
    since = monotonic()
    try:
        poll = polls.get(id(conn), conn.poll)
        _wait_socket(conn, state, framework.wait_socket, timeout, since, poll)
    except BaseException as ex:
        if before == forks.count:
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
    attempt = take_attempt()
    since = monotonic()
    try:
        attempt.begin(conn)
        seconds = attempt.limit(conn)
        wait_socket = framework.wait_socket
        if seconds is not None:
            wait_socket = ConnectWait(conn, attempt, wait_socket, seconds)
        poll = partial(_poll_connecting, conn, attempt)
        _wait_socket(conn, state, wait_socket, timeout, since, poll)
    except BaseException as ex:
        if is_interruption(ex):
            note_interruption(conn, ex, since)
        # psycopg2 leaves the socket open until the connection is collected, and
        # the traceback may keep it for long. Not by a method of a subclass: what that
        # relies on may not be there yet.
        if not conn.async_:
            connection.close(conn)
        raise


def _poll_connecting(conn: connection, attempt: Attempt) -> int:
    try:
        return conn.poll()
    except psycopg2.OperationalError as ex:
        ex.args = (attempt.completed(conn, str(ex)),)
        raise


def _wait_socket(
    conn: connection,
    state: int,
    wait_socket: SocketWait,
    timeout: float | None,
    since: float,
    poll: Callable[[], int],
) -> None:
    """Wait with the framework's own wait: slower, but it can do anything."""
    wait = Wait(conn, since)
    under_way.add(wait)
    try:
        while state != POLL_OK:
            if state not in (POLL_READ, POLL_WRITE):
                raise unknown_state(state)
            # Ask for the descriptor each time: while it connects, libpq may move on
            # to another socket (the next host, or plain text after refused SSL).
            wait_socket(conn.fileno(), write=state == POLL_WRITE, timeout=timeout)
            state = poll()
    finally:
        # Not there if a fork has forgotten it.
        if wait in under_way:
            under_way.discard(wait)
            totals.waits += 1
