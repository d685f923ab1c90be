"""The operating system's threads and waits, whatever is monkey-patched.

Monkey-patching replaces threads and blocking calls by greenlets. The functions of this
module stay native.
"""

from __future__ import annotations

import functools
import math
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

from psycogreen._errors import wait_timeout

_POLL_MAX = 2**31 - 1  # milliseconds: a C int


class SocketWait(Protocol):
    """A function that waits for one descriptor."""

    def __call__(self, fd: int, *, write: bool, timeout: float | None) -> None:
        """Return once *fd* can be read (or written, if *write*) without blocking.

        Raise `WaitTimeout` after *timeout* seconds; ``None`` is no limit.
        """


@functools.cache
def original(module: str, name: str) -> Any:  # noqa: ANN401
    """Return the object *name* of a standard *module*, never a monkey-patched one."""
    gevent = sys.modules.get("gevent.monkey")
    if gevent and gevent.is_object_patched(module, name):
        return gevent.get_original(module, name)
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet:
        return getattr(eventlet.original(module), name)
    return getattr(import_module(module), name)


def is_main_thread() -> bool:
    """Return whether this is the process's main thread, also after a fork."""
    if sys.platform == "linux":
        return threading.get_native_id() == os.getpid()
    return threading.get_native_id() == threading.main_thread().native_id


def start_thread(function: Callable[[], object]) -> None:
    """Run *function* in a new native daemon thread."""
    original("_thread", "start_new_thread")(function, ())


def wait_socket(fd: int, *, write: bool, timeout: float | None) -> None:
    """Wait for *fd* as `SocketWait` describes; this blocks the thread."""
    poll = original("select", "poll")()
    poll.register(fd, select.POLLOUT if write else select.POLLIN)
    if timeout is None:
        poll.poll()
        return
    end = time.monotonic() + timeout
    # Call poll() at least once, and again if the time is longer than its limit. Round
    # up: poll() must not return before the time is up.
    left = timeout
    while not poll.poll(min(math.ceil(left * 1000), _POLL_MAX)):
        left = end - time.monotonic()
        if left <= 0:
            raise wait_timeout(timeout)


def is_writable(fd: int) -> bool:
    """Return whether *fd* can be written without blocking, or has failed."""
    poll = original("select", "poll")()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))
