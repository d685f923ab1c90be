"""Blocks in which psycopg2 blocks, for operations that it refuses in green mode.

psycopg2 has one wait callback for the whole process. So the callback is removed while
any greenlet or thread is inside such a block, and set again when the last one leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

from psycopg2.extensions import connection, get_wait_callback, set_wait_callback

from psycogreen._wait import forks
from psycogreen._wait.native import original

T = TypeVar("T")

WaitCallback: TypeAlias = Callable[[connection], Any]

# A native lock, whatever is monkey-patched: no greenlet switches while it is held.
_lock = original("_thread", "allocate_lock")()
_get_ident = original("_thread", "get_ident")

_blocks: dict[object, int] = {}
"""The blocks that are active, each with its native thread."""

on_change: list[Callable[[], None]] = []
"""Functions to call after `waits` has changed. They must not raise."""

_told = False
"""While a block is active: whether they were called at its begin."""

_callback: WaitCallback | None = None
"""While a block is active: the callback to set when the last one ends."""


@contextmanager
def blocking() -> Iterator[None]:
    """Make psycopg2 block inside a ``with`` block.

    For calls that need psycopg2's own blocking behaviour. It affects the whole process:
    all other greenlets stand still while a call in the block waits. If the block lets
    them run, their calls block too. Keep it short.

    Blocks may nest, and may overlap in several greenlets or threads: psycopg2 waits
    cooperatively again when the last one ends, also by an exception. Does nothing if
    psycopg2 blocks anyway. A wait that is already under way in another greenlet stays
    cooperative.
    """
    block = object()
    _enter(block)
    try:
        yield
    finally:
        _leave(block)


def call_refused(method: Callable[..., T], *arguments: object) -> T:
    """Return the result of a method that psycopg2 refuses if there is a wait callback.

    The method must never wait: connections stay prepared for the callback, see `waits`.
    """
    block = object()
    _enter(block, tells=False)
    try:
        return method(*arguments)
    finally:
        _leave(block)


def waits() -> bool:
    """Return whether psycopg2 waits with a callback, in all but `call_refused`.

    It does not take the lock: a destructor may call it while the lock is held.
    """
    callback = _callback if _blocks else get_wait_callback()
    return not _told and callback is not None


def get_callback() -> WaitCallback | None:
    """Return psycopg2's wait callback; inside a block, the one to set at its end."""
    with _lock:
        return _callback if _blocks else get_wait_callback()


def set_callback(callback: WaitCallback | None) -> None:
    """Set psycopg2's wait callback; inside a block, when the block ends."""
    global _callback
    with _lock:
        if _blocks:
            _callback = callback
        else:
            set_wait_callback(callback)
            _tell()


def _enter(block: object, *, tells: bool = True) -> None:
    global _callback, _told
    with _lock:
        if not _blocks:
            _callback = get_wait_callback()
            set_wait_callback(None)
        _blocks[block] = _get_ident()
        if tells and not _told:
            _told = True
            _tell()


def _leave(block: object) -> None:
    global _told
    with _lock:
        left = _blocks.pop(block, None)
        if not left or _blocks:
            return
        # Keep a callback that other code has set meanwhile.
        if get_wait_callback() is None:
            set_wait_callback(_callback)
        told, _told = _told, False
        if told:
            _tell()


def _tell() -> None:
    for function in on_change:
        function()


@forks.after_in_child
def _after_fork() -> None:
    """Forget the blocks of threads that this child process does not have."""
    global _lock
    _lock = original("_thread", "allocate_lock")()  # another thread may have held it
    here = _get_ident()
    for block, thread in list(_blocks.items()):
        if thread != here:
            _leave(block)
