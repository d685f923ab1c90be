"""psycopg2 under eventlet.

Importing this module imports eventlet and patches nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from psycogreen import _install
from psycogreen._requirements import require
from psycogreen._wait import epoll, forks, native, unpatched

require("eventlet")

from eventlet import hubs, patcher
from eventlet.greenthread import GreenThread
from greenlet import GreenletExit, getcurrent

from psycogreen._errors import WaitTimeout, wait_timeout
from psycogreen._interface import lookups
from psycogreen._wait.callback import Framework, wait_callback
from psycogreen._wait.epoll import EpollSet
from psycogreen._wait.hub import Held, HubGone, InHub, wait_in_hub

if TYPE_CHECKING:
    from psycopg2.extensions import connection

__all__ = ["eventlet_wait_callback", "patch_psycopg"]


def patch_psycopg(
    *,
    resolve_hosts: bool | None = None,
    cancel_interrupted: bool | None = None,
    replace: bool = False,
) -> None:
    """Make psycopg2 wait with eventlet's hub, in this process and its forks.

    The same as ``psycogreen.patch_psycopg("eventlet", ...)``; see
    `psycogreen.patch_psycopg` for the arguments, repetition, and what is raised.
    It replaces eventlet's built-in callback, whether ``eventlet.monkey_patch()`` is
    called before or after it. Host names are resolved by the system's resolver in a
    native thread.
    """
    _install.install(
        eventlet_wait_callback,
        wait_socket=_wait_socket,
        in_hub=_in_hub,
        resolve=_resolve,
        resolve_hosts=resolve_hosts,
        cancel_interrupted=cancel_interrupted,
        replace=replace,
    )
    # eventlet.monkey_patch() would replace this callback by its own, unless it has
    # recorded that psycopg is patched. (monkey_patch(psycopg=True) records it too, but
    # makes a hub, which is too early before a fork.)
    patcher.already_patched["psycopg"] = True


class _Hub:
    """A hub of eventlet's: see `psycogreen._wait.hub.Hub`."""

    releases_late = False  # hubs.use_hub() gives the thread another hub

    def __init__(self, hub: hubs.hub.BaseHub) -> None:
        self._hub = hub
        self.greenlet = hub.greenlet
        # The parent of a GreenThread is the hub, so hub.switch() need not set it.
        usual = type(hub).switch is hubs.hub.BaseHub.switch
        self.plain = GreenThread if usual else type(None)
        self._listener: Any = None

    def watch(self, fd: int, callback: Callable[..., None]) -> None:
        former = self._listener
        self._listener = self._hub.add(self._hub.READ, fd, callback, callback, None)
        if former:
            self._remove(former)

    def unwatch(self) -> None:
        self._remove(self._listener)

    def _remove(self, listener: Any) -> None:  # noqa: ANN401
        # Unless eventlet has dropped it already: sometimes it drops all of a hub's.
        with contextlib.suppress(KeyError, ValueError):
            self._hub.remove(listener)

    def hold(self, epoll_set: Held) -> None:
        # Nothing else to do: eventlet's loop runs until the process ends.
        if _existing_hub() is not self._hub:
            raise HubGone
        epoll_set.held = True

    def release(self, epoll_set: Held) -> None:
        epoll_set.held = False

    def switch(self) -> object:
        if self._hub.greenlet is getcurrent():
            raise InHub
        return self._hub.switch()

    def call_soon(self, function: Callable[[], object]) -> None:
        self._hub.schedule_call_global(0, function)

    def handle_error(self, error: BaseException) -> None:
        if isinstance(error, GreenletExit):
            self._hub.abort()  # the hub itself was killed
        elif isinstance(error, self._hub.SYSTEM_EXCEPTIONS):
            # These end the loop. Raised in a timer, they leave all other timers in place.
            self._hub.schedule_call_global(0, _raise, error)
        else:
            # Ignore an error of printing, for example if stderr is closed.
            with contextlib.suppress(Exception):
                self._hub.squelch_generic_exception(
                    (type(error), error, error.__traceback__)
                )


def _raise(error: BaseException) -> NoReturn:
    raise error


def _existing_hub() -> hubs.hub.BaseHub | None:
    """Return this thread's hub, if there is one."""
    return getattr(hubs._threadlocal, "hub", None)


def _epoll_set() -> EpollSet | None:
    """Return the set of this thread's hub, made on first use."""
    hub = _existing_hub()
    if hub is None:
        if not native.is_main_thread():
            return None
        hub = hubs.get_hub()
    return epoll.set_of_thread(hub, lambda: _adapt(hub))


def _adapt(hub: hubs.hub.BaseHub) -> _Hub:
    unpatched.warn_once("eventlet.monkey_patch()", patcher.is_monkey_patched)
    return _Hub(hub)


def _wait_socket(fd: int, *, write: bool, timeout: float | None) -> None:
    # In the main thread eventlet makes a hub on first use. A native thread is not given
    # a hub because it runs a query.
    if _existing_hub() is None and not native.is_main_thread():
        native.wait_socket(fd, write=write, timeout=timeout)
        return
    if _in_hub():
        wait_in_hub(fd, write=write, timeout=timeout)
        return
    before = forks.count
    error = None if timeout is None else wait_timeout(timeout)
    try:
        hubs.trampoline(
            fd, read=not write, write=write, timeout=timeout, timeout_exc=error
        )
    except WaitTimeout:
        if before == forks.count:
            raise
    while before != forks.count:
        hubs.get_hub().switch()  # never resumed: it waited for the parent's socket


def _in_hub() -> bool:
    hub = _existing_hub()
    return hub is not None and hub.greenlet is getcurrent()


def _resolve(host: str) -> list[str]:
    """Return the addresses of *host*, in the system's order."""
    if _existing_hub() is None and not native.is_main_thread():
        return lookups.look_up_in_place(host)
    return lookups.look_up_by_system(host, _wait_socket)


@wait_callback(Framework(_wait_socket, _epoll_set))
def eventlet_wait_callback(conn: connection, timeout: float | None = -1) -> None:
    """Wait until *conn* is ready, letting other greenthreads run meanwhile.

    psycopg2 calls it after `patch_psycopg()` has installed it. An application may also
    call it itself, after ``psycopg2.connect(..., async_=True)`` and after each
    ``execute()`` on such a connection. In a native thread without a hub it blocks the
    thread.

    *timeout* limits each single wait for the socket, in seconds; ``None`` or a
    negative number is no limit. To install it with a limit::

        psycopg2.extensions.set_wait_callback(
            functools.partial(eventlet_wait_callback, timeout=1))

    Raise `psycogreen.WaitTimeout` when a wait takes longer, and any exception that is
    thrown into the waiting greenthread, such as an `eventlet.Timeout`.

    In the hub, where the garbage collector may run a destructor that queries, it logs a
    warning and blocks for at most five seconds at a time; then it raises
    `psycopg2.ProgrammingError`.
    """
