"""Wake a greenlet from any native thread: by a descriptor that its loop waits for."""

from __future__ import annotations

import os
import sys
from types import TracebackType

from psycogreen._wait import native

_ONE = (1).to_bytes(8, sys.byteorder)
"""An increment for an eventfd. A pipe accepts any bytes."""

# Look them up at import: eventlet takes a while for the first lookup. gevent's close()
# makes a watcher and leaves the work to the loop's next turn, for the case that a
# greenlet still waits for the descriptor. None does here.
_write = native.original("os", "write")
_close = native.original("os", "close")


class bell:
    """Make a descriptor to wait for and one to ring with; close them afterwards.

    On Linux both are the same eventfd, elsewhere they are the ends of a pipe. (A class,
    since `contextlib.contextmanager` costs three times as many calls.)
    """

    __slots__ = ("_ends",)
    _ends: tuple[int, int]

    def __enter__(self) -> tuple[int, int]:
        """Return the descriptors: of the reader, and of the writer."""
        if hasattr(os, "eventfd"):
            reader = os.eventfd(0, os.EFD_CLOEXEC)
            self._ends = reader, reader
        else:
            self._ends = os.pipe()
        return self._ends

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close them."""
        reader, writer = self._ends
        _close(reader)
        if writer != reader:
            _close(writer)


def ring(writer: int) -> None:
    """Make the reader of a bell readable. Raise `OSError` if the bell is closed."""
    _write(writer, _ONE)
