"""What psycogreen's gunicorn integrations have in common.

It runs in a worker, after the fork and before the worker is initialised: the
monkey patch has not happened yet.
"""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

from psycopg2.extensions import connection

from psycogreen import patch_psycopg

if TYPE_CHECKING:
    from gunicorn.workers.base import Worker

_prepared_pid: int | None = None


def prepare_worker(worker: Worker, framework: str | None) -> None:
    """Install the callback of *framework*; ``None`` leaves psycopg2 blocking.

    Either is said in gunicorn's log. Done once in each worker: a call that
    finds it done does nothing.
    """
    global _prepared_pid
    if _prepared_pid == os.getpid():
        return
    _warn_of_inherited_connections(worker)
    if framework:
        patch_psycopg(framework)
        worker.log.info("psycogreen: %s wait callback installed", framework)
    else:
        worker.log.info(
            "psycogreen: no wait callback installed: %s is not a gevent or eventlet "
            "worker, psycopg2 blocks in it as usual",
            type(worker).__name__,
        )
    _prepared_pid = os.getpid()


def _warn_of_inherited_connections(worker: Worker) -> None:
    """Warn of psycopg2 connections that this worker shares with its siblings.

    Their socket was duplicated by the fork: what two workers write to it comes
    to the server mixed, and either may read the answer meant for the other.
    """
    # Not isinstance(), which asks an object for its __class__: a lazy proxy
    # among all the objects of the application would come to life.
    inherited = sum(
        issubclass(type(thing), connection) and not thing.closed
        for thing in gc.get_objects()
    )
    if inherited:
        worker.log.warning(
            "psycogreen: open psycopg2 connections made before the fork: %d. Every "
            "worker shares them and they will be corrupted: open connections in the "
            "worker, on first use or in post_fork, not where --preload imports the "
            "application (SQLAlchemy: call engine.dispose(close=False) in post_fork)",
            inherited,
        )
