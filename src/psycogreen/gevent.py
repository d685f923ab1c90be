"""psycopg2 under gevent.

Importing this module imports gevent and patches nothing.
"""

from __future__ import annotations

import _socket
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psycopg2

from psycogreen import _install
from psycogreen._requirements import require
from psycogreen._wait import epoll, forks, native

require("gevent")

import gevent.socket
from gevent._hub_local import get_hub_if_exists

from psycogreen._errors import wait_timeout
from psycogreen._wait.callback import Framework, wait_callback
from psycogreen._wait.epoll import EpollSet
from psycogreen._wait.hub import IN_HUB, HubGone

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
    Host names are resolved by gevent's resolver.
    """
    _install.install(
        gevent_wait_callback,
        resolve=_resolve,
        resolve_hosts=resolve_hosts,
        cancel_interrupted=cancel_interrupted,
        replace=replace,
    )


class _Hub:
    """A hub of gevent's: see `psycogreen._wait.hub.Hub`."""

    def __init__(self, hub: gevent.hub.Hub) -> None:
        self._hub = hub
        self.greenlet = hub
        self.plain = gevent.Greenlet
        self._watcher: Any = None

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        held = False
        if self._watcher:
            held = self._watcher.ref
            self._watcher.stop()
            self._watcher.close()
        self._watcher = self._hub.loop.io(fd, 1, ref=held)
        self._watcher.start(callback)

    def hold(self) -> None:
        # Another one, too, in a thread that has a former thread's number. (It is asked
        # at every wait if one greenlet waits at a time: no call more than need be.)
        if get_hub_if_exists() is not self._hub:
            raise HubGone
        self._watcher.ref = True

    def release(self) -> None:
        self._watcher.ref = False

    def switch(self) -> object:
        if get_hub_if_exists() is not self._hub:
            raise HubGone
        return self._hub.switch()

    def forget(self) -> None:
        self.release()
        del self._hub._psycogreen


class _LibuvHub(_Hub):
    """The same on libuv, whose watchers of sockets cannot be taken out of account."""

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        held = False
        if self._watcher:
            held = self._watcher.active
            self._watcher.stop()
            self._watcher.close()
        self._watcher = self._hub.loop.io(fd, 1)
        self._callback = callback
        if held:
            self.hold()

    def hold(self) -> None:
        if get_hub_if_exists() is not self._hub:
            raise HubGone
        self._watcher.start(self._callback)

    def release(self) -> None:
        self._watcher.stop()

    def forget(self) -> None:
        # Not stop(): before gevent has made the child's loop its own, that would
        # stop the parent's watcher.
        del self._hub._psycogreen


def _epoll_set() -> EpollSet | None:
    """Return the set of this thread's hub, made on first use."""
    hub = get_hub_if_exists()
    if hub is None:
        if not native.is_main_thread():
            return None
        hub = gevent.get_hub()
    try:
        found: EpollSet | None = hub._psycogreen
    except AttributeError:
        found = hub._psycogreen = EpollSet(_adapt(hub)) if epoll.available() else None
    return found


def _adapt(hub: gevent.hub.Hub) -> _Hub:
    libuv = type(hub.loop).__module__.startswith("gevent.libuv")
    return _LibuvHub(hub) if libuv else _Hub(hub)


def _wait_socket(fd: int, *, write: bool, timeout: float | None) -> None:
    if not _in_greenlet():
        native.wait_socket(fd, write=write, timeout=timeout)
        return
    before = forks.count
    wait_ready = gevent.socket.wait_write if write else gevent.socket.wait_read
    if timeout is None:
        wait_ready(fd)
    else:
        wait_ready(fd, timeout, wait_timeout(timeout))
    while before != forks.count:
        gevent.get_hub().switch()  # what it waited for is the parent process's


def _resolve(host: str) -> list[str]:
    """Return the addresses of *host*, in the resolver's order."""
    # _socket is the C module below socket, which gevent never patches.
    module = gevent.socket if _in_greenlet() else _socket
    found = module.getaddrinfo(host, None, socket.AF_UNSPEC, socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def _in_greenlet() -> bool:
    """Return whether there is a loop to wait with, or one may be made, here.

    In the main thread gevent makes a hub when it is first asked for. A native
    thread that has none must not get one for being in a database's way.
    """
    if get_hub_if_exists() is None:
        return native.is_main_thread()
    if _in_hub():
        raise psycopg2.ProgrammingError(IN_HUB)
    return True


def _in_hub() -> bool:
    return get_hub_if_exists() is gevent.getcurrent()


@wait_callback(Framework(_wait_socket, _in_hub, _epoll_set))
def gevent_wait_callback(conn: connection, timeout: float | None = None) -> None:
    """Wait until *conn* is ready, letting other greenlets run meanwhile.

    psycopg2 calls it once `patch_psycopg()` has installed it. An application
    may call it too, after ``psycopg2.connect(..., async_=True)`` and after each
    ``execute()`` on such a connection. In a native thread without a hub it
    blocks the thread.

    *timeout* limits each single wait for the socket, in seconds; ``None`` or a
    negative number is no limit. To install it with a limit::

        psycopg2.extensions.set_wait_callback(
            functools.partial(gevent_wait_callback, timeout=1))

    Raise `psycogreen.WaitTimeout` when a wait takes longer, and whatever is
    thrown into the waiting greenlet, such as a `gevent.Timeout`. Raise
    `psycopg2.ProgrammingError` in the hub, which must not wait.
    """
