"""psycopg2 under gevent.

Importing this module imports gevent and patches nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import ref

from psycogreen import _install
from psycogreen._requirements import require
from psycogreen._wait import epoll, forks, native, unpatched

require("gevent")

import gevent.monkey
import gevent.resolver.thread
import gevent.socket
import gevent.threadpool
from gevent._hub_local import get_hub_if_exists
from gevent.exceptions import HubDestroyed

from psycogreen._errors import WaitTimeout, wait_timeout
from psycogreen._interface import lookups
from psycogreen._wait.callback import Framework, wait_callback
from psycogreen._wait.epoll import EpollSet
from psycogreen._wait.hub import Held, HubGone, InHub, wait_in_hub

if TYPE_CHECKING:
    from psycopg2.extensions import connection

__all__ = ["gevent_wait_callback", "patch_psycopg"]


def patch_psycopg(
    *,
    resolve_hosts: bool | None = None,
    cancel_interrupted: bool | None = None,
    replace: bool = False,
) -> None:
    """Make psycopg2 wait with gevent's loop, in this process and its forks.

    The same as ``psycogreen.patch_psycopg("gevent", ...)``; see
    `psycogreen.patch_psycopg` for the arguments, repetition, and what is raised.
    Host names are resolved by the system's resolver in a native thread, or by the resolver
    that ``GEVENT_RESOLVER`` names.
    """
    _install.install(
        gevent_wait_callback,
        wait_socket=_wait_socket,
        in_hub=_in_hub,
        resolve=_resolve,
        resolve_hosts=resolve_hosts,
        cancel_interrupted=cancel_interrupted,
        replace=replace,
    )


class _Hub:
    """A hub of gevent's: see `psycogreen._wait.hub.Hub`."""

    releases_late = True

    def __init__(self, hub: gevent.hub.Hub) -> None:
        self._hub = hub
        self.greenlet = hub
        self.plain = gevent.Greenlet
        self._pid = os.getpid()
        self._watcher: Any = None
        self._stops = 0

    def watch(self, fd: int, callback: Callable[..., None]) -> None:
        former = self._watcher
        watcher = self._hub.loop.io(fd, 1, ref=bool(former and former.ref))
        watcher.start(callback, None)
        self._watcher = watcher
        _end(former)

    def unwatch(self) -> None:
        _end(self._watcher)

    def hold(self, epoll_set: Held) -> None:
        hub = self._hub
        # As _is_over() does, without a call.
        if hub.dead or hub.loop is None or (_destroyed and _is_over(hub)):
            raise HubGone
        try:
            self._watcher.ref = True
        except ValueError:  # the loop is destroyed, and the hub will be
            _note_destroyed(self._hub)
            raise HubGone from None
        epoll_set.held = True

    def release(self, epoll_set: Held) -> None:
        hub = self._hub
        if not (hub.dead or hub.loop is None or (_destroyed and _is_over(hub))):
            epoll_set.held = False
            self._watcher.ref = False

    def switch(self) -> object:
        if _is_over(self._hub):
            raise HubGone
        if gevent.getcurrent() is self._hub:
            raise InHub
        return self._hub.switch()

    def call_soon(self, function: Callable[[], object]) -> None:
        if not _is_over(self._hub):
            self._hub.loop.run_callback(function)

    def handle_error(self, error: BaseException) -> None:
        # The error must end the loop. gevent then stops the watcher that raised it, so
        # a destructor that queries before the hub has ended would wait forever.
        if isinstance(error, HubDestroyed):
            _note_destroyed(self._hub)
            raise error
        # An error of printing must not be raised either, for example if stderr is
        # closed.
        with contextlib.suppress(Exception):
            self._hub.handle_error(self, type(error), error, error.__traceback__)


class _LibuvHub(_Hub):
    """A hub on libuv, whose socket watchers always keep the loop running."""

    def watch(self, fd: int, callback: Callable[..., None]) -> None:
        former = self._watcher
        self._watcher = self._hub.loop.io(fd, 1)
        self._callback = callback
        if former and former.active:
            self._watcher.start(callback, None)
        _end(former)

    def hold(self, epoll_set: Held) -> None:
        if _is_over(self._hub):
            raise HubGone
        stops = None
        # During these calls, other code may run that waits and then stops the watcher.
        while stops != self._stops:
            stops = self._stops
            self._watcher.start(self._callback, None)
        epoll_set.held = True

    def release(self, epoll_set: Held) -> None:
        epoll_set.held = False
        # In a forked child gevent may not have reinitialised the loop yet: this would
        # stop the parent's watcher.
        if not _is_over(self._hub) and self._pid == os.getpid():
            self._stops += 1
            self._watcher.stop()
            epoll_set.held = False


_destroyed: set[ref[gevent.hub.Hub]] = set()
"""The hubs that `Hub.destroy()` has ended, but may not have cleaned up yet."""


def _note_destroyed(hub: gevent.hub.Hub) -> None:
    _destroyed.add(ref(hub, _destroyed.discard))


def _is_over(hub: gevent.hub.Hub) -> bool:
    """Return whether *hub* is destroyed or will be."""
    if hub.dead or hub.loop is None:
        return True
    # A plain set, which costs nothing while it is empty.
    return bool(_destroyed) and ref(hub) in _destroyed


def _end(watcher: Any) -> None:  # noqa: ANN401
    """Stop *watcher*, if there is one and its loop lives."""
    if watcher:
        # If the loop was destroyed, its watchers were too.
        with contextlib.suppress(ValueError):
            watcher.stop()
            watcher.close()


def _epoll_set() -> EpollSet | None:
    """Return the set of this thread's hub, made on first use."""
    hub = _existing_hub()
    if hub is None:
        if not native.is_main_thread():
            return None
        hub = _apart(gevent.get_hub)
    if _is_over(hub):
        return None
    return epoll.set_of_thread(hub, lambda: _adapt(hub))


def _adapt(hub: gevent.hub.Hub) -> _Hub:
    unpatched.warn_once("gevent.monkey.patch_all()", gevent.monkey.is_module_patched)
    libuv = type(hub.loop).__module__.startswith("gevent.libuv")
    return _LibuvHub(hub) if libuv else _Hub(hub)


def _existing_hub() -> gevent.hub.Hub | None:
    """Return this thread's hub, if there is one."""
    return _apart(get_hub_if_exists)


def _apart(find: Callable[[], Any]) -> Any:  # noqa: ANN401
    """Return the result of *find*, called in a generator of its own, which is dropped.

    gevent's functions leave the exception that their caller handles in the state of the
    current generator.
    """
    return next(each() for each in (find,))


_SHORTEST_TIMER = 0.001
"""Seconds. libuv's timers count milliseconds, and gevent warns of a shorter one."""


def _wait_socket(fd: int, *, write: bool, timeout: float | None) -> None:
    hub = _existing_hub()
    if not native.is_main_thread() if hub is None else _is_over(hub):
        native.wait_socket(fd, write=write, timeout=timeout)
        return
    if hub is gevent.getcurrent():
        wait_in_hub(fd, write=write, timeout=timeout)
        return
    _wait_in_greenlet(fd, write=write, timeout=timeout)


def _wait_in_greenlet(fd: int, *, write: bool, timeout: float | None) -> None:
    """Wait for *fd* as `SocketWait` describes, in a greenlet with a living hub."""
    before = forks.count
    wait_ready = gevent.socket.wait_write if write else gevent.socket.wait_read
    try:
        if timeout is None:
            wait_ready(fd)
        else:
            seconds = max(timeout, _SHORTEST_TIMER)
            wait_ready(fd, seconds, wait_timeout(timeout))
    except WaitTimeout:
        if before == forks.count:
            raise
    while before != forks.count:
        gevent.get_hub().switch()  # never resumed: it waited for the parent's socket


def _resolve(host: str) -> list[str]:
    """Return the addresses of *host*, in the resolver's order."""
    hub = _hub_of_greenlet()
    if hub is None:
        return lookups.look_up_in_place(host)
    if type(hub.resolver) is gevent.resolver.thread.Resolver:
        # The same lookup, in a thread that is cheaper than one of the hub's pool.
        return lookups.look_up_by_system(host, _wait_in_greenlet)
    return lookups.look_up(
        host,
        gevent.socket.getaddrinfo,
        _wait_in_greenlet,
        start=gevent.spawn,
        among=hub,
    )


def _hub_of_greenlet() -> gevent.hub.Hub | None:
    """Return the hub with which the caller can wait, if it is a greenlet that can.

    In the main thread gevent makes a hub on first use. A native thread is not given a
    hub because it runs a query.
    """
    hub = _existing_hub()
    if hub is None:
        return _apart(gevent.get_hub) if native.is_main_thread() else None
    return None if hub is gevent.getcurrent() or _is_over(hub) else hub


def _in_hub() -> bool:
    return _existing_hub() is gevent.getcurrent()


@wait_callback(Framework(_wait_socket, _epoll_set))
def gevent_wait_callback(conn: connection, timeout: float | None = None) -> None:
    """Wait until *conn* is ready, letting other greenlets run meanwhile.

    psycopg2 calls it after `patch_psycopg()` has installed it. An application may also
    call it itself, after ``psycopg2.connect(..., async_=True)`` and after each
    ``execute()`` on such a connection. In a native thread without a hub it blocks the
    thread.

    *timeout* limits each single wait for the socket, in seconds; ``None`` or a
    negative number is no limit. To install it with a limit::

        psycopg2.extensions.set_wait_callback(
            functools.partial(gevent_wait_callback, timeout=1))

    Raise `psycogreen.WaitTimeout` when a wait takes longer, and any exception that is
    thrown into the waiting greenlet, such as a `gevent.Timeout`.

    In the hub, where the garbage collector may run a destructor that queries, it logs a
    warning and blocks for at most five seconds at a time; then it raises
    `psycopg2.ProgrammingError`.
    """
