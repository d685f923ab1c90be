"""Wake a greenlet from any native thread: by a descriptor that its loop waits for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from psycogreen._wait import native

_ONE = (1).to_bytes(8, sys.byteorder)
"""An increment for an eventfd. A pipe accepts any bytes."""

# Look it up at import: eventlet takes a while for the first lookup.
_write = native.original("os", "write")


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
            os.close(end)


def ring(writer: int) -> None:
    """Make the reader of a bell readable. Raise `OSError` if the bell is closed."""
    _write(writer, _ONE)
