"""The one fork hook: it runs all functions that reset state in a forked child."""

from __future__ import annotations

import _socket
import logging
import os
from collections.abc import Callable, Iterable

count = 0
"""How many forks are between the process that imported this module and this process."""

_functions: list[Callable[[], None]] = []


def after_in_child(function: Callable[[], None]) -> Callable[[], None]:
    """Call *function* in each child that this process forks, immediately after the fork.

    The functions run in the order of registration. If one raises, that is logged and the
    others still run: a child that keeps its parent's state reads the parent's answers.
    """
    _functions.append(function)
    return function


def disconnect(descriptors: Iterable[int]) -> None:
    """Replace *descriptors*, in a forked child, by a socket without a peer.

    Their sockets are the parent's. After this, nothing that the child does with its
    copies of the connections reaches the server.
    """
    # A socket, because libuv aborts the process if epoll refuses a descriptor, such as
    # that of /dev/null. A socket of this kind is never readable and accepts no data.
    # The type below gevent's: gevent delays a close until its loop runs, and the number
    # may be reused before that.
    nowhere = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    try:
        for descriptor in descriptors:
            os.dup2(nowhere.fileno(), descriptor, inheritable=False)
    finally:
        nowhere.close()


def _after_in_child() -> None:
    global count
    count += 1
    for function in _functions:
        try:
            function()
        except Exception:
            logger = logging.getLogger("psycogreen")
            logger.exception("%s.%s failed", function.__module__, function.__name__)


os.register_at_fork(after_in_child=_after_in_child)
