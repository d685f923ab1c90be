"""eventlet's monkey patch in a worker: after the fork, when a lot is imported."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import eventlet
from eventlet import hubs


def monkey_patch(*, preloaded: bool) -> None:
    """Monkey-patch this process, which was forked to become a worker.

    What is imported already is patched too, in place. *preloaded* says that the
    application is among it.
    """
    # A hub that was made before the fork shares its epoll with all the workers.
    # (hubs.use_hub() would drop it as well, together with the choice of its kind.)
    vars(hubs._threadlocal).pop("hub", None)
    if preloaded:
        with _logging_disabled():
            eventlet.monkey_patch()
    else:
        eventlet.monkey_patch()
    _mend_conditions()


@contextmanager
def _logging_disabled() -> Iterator[None]:
    """Spare the log what eventlet prints as it looks for locks to exchange.

    It is a traceback for each ``from flask import request`` of the application.
    """
    before = logging.root.manager.disable
    logging.disable()
    try:
        yield
    finally:
        logging.disable(before)


def _mend_conditions() -> None:
    """Make conditions use the locks that they have.

    eventlet exchanges an `threading.RLock` wherever an attribute holds one. Of a
    `threading.Condition` that leaves the methods of the old one in use, and its
    ``notify()`` raises: the pool of an SQLAlchemy engine stops working.
    """
    for thing in gc.get_objects():
        # Not isinstance(), which would bring lazy proxies to life.
        if issubclass(type(thing), threading.Condition):
            lock = thing._lock
            if getattr(thing.acquire, "__self__", lock) is not lock:
                thing.__init__(lock)
