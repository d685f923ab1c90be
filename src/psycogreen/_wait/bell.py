"""Wake a greenlet from any native thread: by a descriptor that its loop waits for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from psycogreen._wait import native

_ONE = (1).to_bytes(8, sys.byteorder)
"""An increment for an eventfd. A pipe accepts any bytes."""

# Look them up at import: eventlet takes a while for the first lookup. gevent's close()
# makes a watcher and leaves the work to the loop's next turn, for the case that a
# greenlet still waits for the descriptor. None does here.
_write = native.original("os", "write")
_close = native.original("os", "close")


@contextmanager
def bell() -> Iterator[tuple[int, int]]:
    """Make a descriptor to wait for and one to ring with; close them afterwards.

    On Linux both are the same eventfd, elsewhere they are the ends of a pipe.
    """
    if hasattr(os, "eventfd"):
        reader = writer = os.eventfd(0, os.EFD_CLOEXEC)
    else:
        reader, writer = os.pipe()
    try:
        yield reader, writer
    finally:
        for end in {reader, writer}:
            _close(end)


def ring(writer: int) -> None:
    """Make the reader of a bell readable. Raise `OSError` if the bell is closed."""
    _write(writer, _ONE)
