"""What a forked child has to forget: all of it is registered here, in one hook."""

from __future__ import annotations

import _socket
import logging
import os
from collections.abc import Callable, Iterable

count = 0
"""How many forks lie between the process that imported this and this one."""

_functions: list[Callable[[], None]] = []


def after_in_child(function: Callable[[], None]) -> Callable[[], None]:
    """Call *function* in each child that this process forks, at once.

    The functions run in the order in which they were registered. One that raises is
    logged and does not keep the others from running: a child that does not forget all
    reads its parent's answers.
    """
    _functions.append(function)
    return function


def disconnect(descriptors: Iterable[int]) -> None:
    """Let *descriptors* lead nowhere, in a forked child, until they are closed.

    The sockets behind them are the parent's: nothing that is done with the child's
    copies of its connections reaches the server.
    """
    # A socket, because libuv aborts the process when epoll refuses what it watches,
    # such as /dev/null. Of this kind, it is never ready to be read and takes no data.
    # The raw type: gevent puts off a close until its loop runs, and the number may be
    # another one's by then.
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
