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

from psycogreen._wait import forks, native
from psycogreen._wait.cancel import cancel
from psycogreen._wait.deadline import (
    STATUS_CONNECTING,
    Attempt,
    ConnectWait,
    take_attempt,
)
from psycogreen._wait.epoll import (
    BUSY,
    NOWHERE,
    EpollSet,
    set_in_use,
    unknown_state,
)
from psycogreen._wait.hub import HubGone, InHub
from psycogreen._wait.native import SocketWait
from psycogreen._wait.stats import (
    Wait,
    is_interruption,
    note_interruption,
    totals,
    under_way,
)
from psycogreen._wait.twin import Entry, forget, make_wait, polls

WaitCallback = TypeVar("WaitCallback", bound=Callable[..., None])


@dataclass(frozen=True)
class Framework:
    """How a framework waits."""

    wait_socket: SocketWait
    """The framework's wait for any descriptor. In a native thread without a loop it
    blocks the thread; in the hub it is `psycogreen._wait.hub.wait_in_hub`."""

    epoll_set: Callable[[], EpollSet | None]
    """Returns the epoll set of this thread's hub, if it has a hub and epoll."""


def wait_callback(framework: Framework) -> Callable[[WaitCallback], WaitCallback]:
    """Replace a stub by the wait callback of *framework*.

    The stub supplies the name, the signature and the docstring.
    """

    def decorate(stub: WaitCallback) -> WaitCallback:
        find_entry = partial(_entry_or_wait, framework)
        wait = make_wait(find_entry, partial(_failed, framework))
        return cast(WaitCallback, functools.wraps(stub)(wait))

    return decorate


def _failed(
    framework: Framework, conn: connection, entry: Entry, ex: BaseException
) -> bool:
    """Handle *ex*, which ended a wait; return whether to wait again.

    *ex* is raised here, so that it is the exception being handled, also if C calls this.
    (C itself would have to restore the exception that a generator's caller handles.)
    """
    traceback = ex.__traceback__
    try:
        raise ex
    except BaseException:  # noqa: BLE001
        return _should_wait_again(framework, conn, entry, ex)
    finally:
        ex.__traceback__ = traceback


def _should_wait_again(
    framework: Framework, conn: connection, entry: Entry, ex: BaseException
) -> bool:
    epoll_set = entry.epoll_set
    epoll_set.settle()
    if isinstance(ex, HubGone):
        entry.state = NOWHERE
        forget(entry)
    if entry.attempt is not None:
        attempt, entry.attempt = entry.attempt, None
        return _failed_to_connect(framework, conn, entry, attempt, ex)
    if isinstance(ex, HubGone):
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


def _entry_or_wait(
    framework: Framework, conn: connection, state: int, timeout: float | None
) -> Entry | None:
    """Return the entry of *conn* in the epoll set of this thread's hub.

    If the epoll set cannot be used, do the whole wait here and return ``None``.
    *state* is the result of its poll(): a connection that connects must not be polled
    again before the wait.
    """
    if state not in (POLL_READ, POLL_WRITE):
        raise unknown_state(state)
    if timeout is not None and timeout < 0:
        timeout = None
    # Objects without `status`, which have only poll(), count as established connections.
    if getattr(conn, "status", STATUS_READY) in STATUS_CONNECTING:
        return _entry_or_connect(framework, conn, state, timeout)
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


def _entry_or_connect(
    framework: Framework, conn: connection, state: int, timeout: float | None
) -> Entry | None:
    """Do the same as `_entry_or_wait` for *conn*, which connects.

    The entry has the attempt. It is used if there is no limit of time.
    """
    attempt = take_attempt(conn)
    since = monotonic()
    try:
        seconds = attempt.begin(conn)
        if seconds is None and timeout is None:
            epoll_set = set_in_use() or framework.epoll_set()
            if epoll_set is not None:
                entry = epoll_set.entry(conn)
                if entry.waiter is not None:
                    raise psycopg2.ProgrammingError(BUSY)
                entry.attempt = attempt
                return entry
        wait_socket = framework.wait_socket
        if seconds is not None:
            wait_socket = ConnectWait(conn, attempt, wait_socket, seconds)
        _connect(conn, state, attempt, wait_socket, timeout, since)
    except BaseException as ex:
        _close_unconnected(conn, ex, since)
        raise
    return None


def _connect(
    conn: connection,
    state: int,
    attempt: Attempt,
    wait_socket: SocketWait,
    timeout: float | None,
    since: float,
) -> None:
    """Wait with *wait_socket* until *conn* is established."""

    def poll() -> int:
        try:
            return conn.poll()
        except psycopg2.OperationalError as ex:
            if not attempt.goes_on_after(conn, ex):
                raise
        attempt.go_on(conn)
        return POLL_WRITE

    wait_socket = partial(_wait_unless_writable, wait_socket)
    _wait_socket(conn, state, wait_socket, timeout, since, poll)


def _failed_to_connect(
    framework: Framework,
    conn: connection,
    entry: Entry,
    attempt: Attempt,
    ex: BaseException,
) -> bool:
    """Handle *ex*, which ended the wait of an *attempt* to connect.

    Return ``True`` if *conn* is established nevertheless, else raise.
    """
    try:
        if not isinstance(ex, (HubGone, InHub)):
            _go_on_after(conn, entry, attempt, ex)
        # Wait until the socket can be written, which may be what poll() has asked for.
        # To poll early for a read is harmless.
        _connect(conn, POLL_WRITE, attempt, framework.wait_socket, None, entry.since)
        return True
    except BaseException as error:
        _close_unconnected(conn, error, entry.since)
        raise


def _go_on_after(
    conn: connection, entry: Entry, attempt: Attempt, ex: BaseException
) -> None:
    """Go on after *ex*, without *entry*; raise *ex* if the attempt does not."""
    try:
        if (
            not isinstance(ex, psycopg2.OperationalError)
            or is_interruption(ex)
            or not attempt.goes_on_after(conn, ex)
        ):
            raise ex
        attempt.go_on(conn)
    except BaseException:
        entry.epoll_set.ended += 1
        raise
    entry.state = NOWHERE  # its socket was closed
    forget(entry)


def _close_unconnected(conn: connection, ex: BaseException, since: float) -> None:
    """Close *conn*, whose attempt to connect ended with *ex*."""
    if is_interruption(ex):
        note_interruption(conn, ex, since)
    # psycopg2 leaves the socket open until the connection is collected, which a
    # traceback may delay. Call the base class: a subclass may not be initialised.
    if not conn.async_:
        connection.close(conn)


def _wait_unless_writable(
    wait_socket: SocketWait, fd: int, *, write: bool, timeout: float | None
) -> None:
    """Wait for *fd*, unless the caller wants to write and *fd* is writable already.

    While a connection is opened it usually is: a unix socket connects at once, and libpq
    writes little. Asking the kernel costs less than one iteration of the loop.
    """
    if not (write and native.is_writable(fd)):
        wait_socket(fd, write=write, timeout=timeout)


def _wait_socket(
    conn: connection,
    state: int,
    wait_socket: SocketWait,
    timeout: float | None,
    since: float,
    poll: Callable[[], int],
) -> None:
    """Wait with the framework's own wait: slower, but for any connection and timeout."""
    wait = Wait(conn, since)
    under_way.add(wait)
    try:
        while state != POLL_OK:
            if state not in (POLL_READ, POLL_WRITE):
                raise unknown_state(state)
            # Ask for the descriptor each time: a connection that connects may change to
            # another socket (the next host, or plain text after refused SSL).
            wait_socket(conn.fileno(), write=state == POLL_WRITE, timeout=timeout)
            state = poll()
    finally:
        # After a fork it is not in the set.
        if wait in under_way:
            under_way.discard(wait)
            totals.waits += 1
