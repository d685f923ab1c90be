"""The interface between the wait and a framework's hub."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import psycopg2

from psycogreen._errors import WaitTimeout
from psycogreen._wait import native
from psycogreen._wait.stats import logger

if TYPE_CHECKING:
    from greenlet import greenlet

IN_HUB = (
    "cannot wait for PostgreSQL in the hub: what the loop itself calls "
    "must not block; spawn a greenlet for it"
)

LONGEST_STALL = 5.0
"""The longest wait for a socket in the hub's own greenlet, in seconds."""


class HubGone(Exception):
    """A hub has ended; a connection that waited with it needs another hub."""


class InHub(Exception):
    """The hub's own greenlet would have to wait, but it cannot let the hub run."""


class Held(Protocol):
    """An object that records whether the loop is held."""

    held: bool


class Hub(Protocol):
    """A framework's hub, which runs a thread's loop. Use it only in its thread."""

    greenlet: greenlet
    """The greenlet in which the loop runs."""

    plain: type[greenlet]
    """The type of the greenlets for which *switch* only switches to *greenlet*, while
    that is running."""

    releases_late: bool
    """Whether `release` may be called when the hub has woken all greenlets that are ready,
    instead of when each wait ends. A wait that begins in between then needs no `hold`.
    It must be ``False`` where only `hold` notices that the thread has another hub."""

    def switch(self) -> object:
        """Let the hub run until it switches back.

        Raise `InHub` in the hub's own greenlet, and `HubGone` as `hold` does.
        """

    def watch(self, fd: int, callback: Callable[..., None]) -> None:
        """Call *callback* in the hub whenever *fd* can be read.

        It replaces the previous descriptor and callback. If this raises, they stay.
        """

    def unwatch(self) -> None:
        """Stop watching. Never raises, also if the loop has ended."""

    def hold(self, epoll_set: Held) -> None:
        """Keep the loop running, and record that, because a greenlet waits.

        Raise `HubGone` if the loop has ended.
        """

    def release(self, epoll_set: Held) -> None:
        """Let the loop end, and record that, because no greenlet waits. Never raises.

        No other code may run between the two steps of this, or of `hold`: code that
        waits there would find a record that is not true.
        """

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call *function* in the hub, in the next iteration of its loop.

        Do nothing if the hub has ended: it wakes no greenlet any more.
        """

    def handle_error(self, error: BaseException) -> None:
        """Report *error*, which a greenlet that the hub has woken did not catch.

        Raise only an exception that must end the loop.
        """


def wait_in_hub(fd: int, *, write: bool, timeout: float | None) -> None:
    """Wait for *fd* as `SocketWait` describes, in the hub's own greenlet.

    This stops the loop. It happens if the garbage collector runs a destructor that
    queries there: a short stall is better than a lost connection. A long wait is an
    error of the application: raise `psycopg2.ProgrammingError` after `LONGEST_STALL`
    seconds.
    """
    logger.warning("waiting for PostgreSQL in the hub: its loop stands still meanwhile")
    if timeout is not None and timeout <= LONGEST_STALL:
        native.wait_socket(fd, write=write, timeout=timeout)
        return
    try:
        native.wait_socket(fd, write=write, timeout=LONGEST_STALL)
    except WaitTimeout:
        raise psycopg2.ProgrammingError(IN_HUB) from None
