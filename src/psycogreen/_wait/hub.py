"""What the wait needs of a framework's hub."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from greenlet import greenlet

IN_HUB = (
    "cannot wait for PostgreSQL in the hub: what the loop itself calls "
    "must not block; spawn a greenlet for it"
)


class HubGone(Exception):
    """A thread's hub is not the one that it was."""


class Hub(Protocol):
    """A framework's hub: what runs a thread's loop."""

    greenlet: greenlet
    """The greenlet in which the loop runs."""

    plain: type[greenlet]
    """The type of the greenlets for which *switch* does no more than to switch to
    *greenlet*, as long as that has begun and not ended."""

    def switch(self) -> object:
        """Let the hub run, until it switches back; may raise what `hold` does."""

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call *callback* in the hub whenever *fd* can be read; forget former ones."""

    def hold(self) -> None:
        """Keep the loop running: somebody waits.

        Raise `HubGone` if the thread has another hub by now, and
        `psycopg2.ProgrammingError` in the hub's own greenlet.
        """

    def release(self) -> None:
        """Let the loop end: nobody waits."""

    def forget(self) -> None:
        """Keep no set for the hub, in a child just forked: see `EpollSet.abandon`."""
