"""Blocks in which psycopg2 blocks, for what it refuses to do in green mode.

psycopg2's wait callback is one for the whole process. So the callback is gone
as long as anybody, in any greenlet or thread, is inside such a block, and comes
back when the last one leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from psycopg2.extensions import connection, get_wait_callback, set_wait_callback

from psycogreen._wait import forks
from psycogreen._wait.native import original

WaitCallback: TypeAlias = Callable[[connection], Any]

# A native lock, made before it is known who patches what: nothing waits or
# switches while it is held.
_lock = original("_thread", "allocate_lock")()
_get_ident = original("_thread", "get_ident")

_blocks: dict[object, int] = {}
"""The blocks entered and not left, and the native thread of each."""

_callback: WaitCallback | None = None
"""What waits when no block is entered, as long as there is one."""


@contextmanager
def blocking() -> Iterator[None]:
    """Make psycopg2 block inside a ``with`` block.

    For ``COPY`` and for large objects, which psycopg2 refuses with a wait callback
    installed. It concerns the whole process: all other greenlets stand still while
    a call in the block waits, and what they call, if the block lets them run, blocks
    as well. Keep it short.

    Blocks nest, and may overlap in several greenlets or threads: psycopg2 waits
    cooperatively again when the last one is left, by an exception too. Does
    nothing if psycopg2 blocks anyway. A wait that is under way in another greenlet
    goes on as it began.
    """
    block = object()
    _enter(block)
    try:
        yield
    finally:
        _leave(block)


def get_callback() -> WaitCallback | None:
    """Return psycopg2's wait callback; inside a block, the one that comes after it."""
    with _lock:
        return _callback if _blocks else get_wait_callback()


def set_callback(callback: WaitCallback | None) -> None:
    """Set psycopg2's wait callback; inside a block, for after it."""
    global _callback
    with _lock:
        if _blocks:
            _callback = callback
        else:
            set_wait_callback(callback)


def _enter(block: object) -> None:
    global _callback
    with _lock:
        if not _blocks:
            _callback = get_wait_callback()
            set_wait_callback(None)
        _blocks[block] = _get_ident()


def _leave(block: object) -> None:
    with _lock:
        left = _blocks.pop(block, None)
        # Somebody may have set another one meanwhile, which is not ours to undo.
        if left and not _blocks and get_wait_callback() is None:
            set_wait_callback(_callback)


@forks.after_in_child
def _after_fork() -> None:
    """Forget the blocks of threads that this child process does not have."""
    global _lock
    _lock = original("_thread", "allocate_lock")()  # another thread may have held it
    here = _get_ident()
    for block, thread in list(_blocks.items()):
        if thread != here:
            _leave(block)
