"""What the wait needs of a framework's hub."""

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
"""How long the hub's own greenlet waits for a socket, in seconds."""


class HubGone(Exception):
    """A hub has ended, and a connection that waited with it needs another one."""


class InHub(Exception):
    """The hub's own greenlet is to wait: it cannot let the hub run meanwhile."""


class Held(Protocol):
    """What notes whether the loop is held."""

    held: bool


class Hub(Protocol):
    """A framework's hub: what runs a thread's loop. To be used in its thread only."""

    greenlet: greenlet
    """The greenlet in which the loop runs."""

    plain: type[greenlet]
    """The type of the greenlets for which *switch* does no more than to switch to
    *greenlet*, as long as that has begun and not ended."""

    def switch(self) -> object:
        """Let the hub run, until it switches back.

        Raise `InHub` in the hub's own greenlet, and `HubGone` as `hold` does.
        """

    def watch(self, fd: int, callback: Callable[..., None]) -> None:
        """Call *callback* in the hub whenever *fd* can be read.

        It takes the place of the former descriptor and its callback. If this raises,
        they stay.
        """

    def unwatch(self) -> None:
        """Watch nothing any more. Does not raise, not even if the loop has ended."""

    def hold(self, epoll_set: Held) -> None:
        """Keep the loop running, and note that: somebody waits.

        Raise `HubGone` if it has ended.
        """

    def release(self, epoll_set: Held) -> None:
        """Let the loop end, and note that: nobody waits. Does not raise.

        Nothing may run between the two steps of this, nor of `hold`: what waits there
        must not find the loop held that is not.
        """

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call *function* in the hub, the next time that its loop goes round."""

    def handle_error(self, error: BaseException) -> None:
        """Report *error*, which came out of a greenlet that the hub has woken.

        Raise only what has to end the loop.
        """


def wait_in_hub(fd: int, *, write: bool, timeout: float | None) -> None:
    """Wait for *fd* as `SocketWait` says, in the hub's own greenlet: the loop stops.

    The garbage collector may run a destructor there that queries. A short stall is
    better than a connection that is lost. A long one is an error of the application:
    raise `psycopg2.ProgrammingError` after `LONGEST_STALL` seconds.
    """
    logger.warning("waiting for PostgreSQL in the hub: its loop stands still meanwhile")
    if timeout is not None and timeout <= LONGEST_STALL:
        native.wait_socket(fd, write=write, timeout=timeout)
        return
    try:
        native.wait_socket(fd, write=write, timeout=LONGEST_STALL)
    except WaitTimeout:
        raise psycopg2.ProgrammingError(IN_HUB) from None
