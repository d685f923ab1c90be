"""eventlet's monkey patch in a worker, after the fork and after many imports."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import eventlet
from eventlet import hubs


def monkey_patch(*, preloaded: bool) -> None:
    """Monkey-patch this process, a forked worker.

    Modules that are imported already are patched in place. *preloaded* tells whether
    the application is among them.
    """
    # All workers would share the epoll set of a hub that was made before the fork.
    # (hubs.use_hub() drops the hub too, but also the choice of its class.)
    vars(hubs._threadlocal).pop("hub", None)
    if preloaded:
        with _logging_disabled():
            eventlet.monkey_patch()
    else:
        eventlet.monkey_patch()
    _fix_conditions()


@contextmanager
def _logging_disabled() -> Iterator[None]:
    """Suppress what eventlet logs while it looks for locks to replace.

    It logs a traceback for each ``from flask import request`` of the application.
    """
    before = logging.root.manager.disable
    logging.disable()
    try:
        yield
    finally:
        logging.disable(before)


def _fix_conditions() -> None:
    """Let conditions use the methods of their current lock.

    eventlet replaces each `threading.RLock` that is an attribute of an object. A
    `threading.Condition` then still uses the methods of the old lock, and its
    ``notify()`` raises: the pool of an SQLAlchemy engine stops working.
    """
    for thing in gc.get_objects():
        # Not isinstance(), which would evaluate lazy proxies.
        if issubclass(type(thing), threading.Condition):
            lock = thing._lock
            if getattr(thing.acquire, "__self__", lock) is not lock:
                thing.__init__(lock)
