"""Code that psycogreen's gunicorn integrations share.

It runs in a worker, after the fork and before the worker is initialised. The worker
has not monkey-patched yet.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from psycopg2.extensions import connection

from psycogreen import patch_psycopg
from psycogreen._install import monkey_patched
from psycogreen._servers import GUNICORN
from psycogreen._wait import native, unpatched

if TYPE_CHECKING:
    from gunicorn.workers.base import Worker

_IN_CONFIGURATION = {
    "gevent": ", or put 'from gevent import monkey; monkey.patch_all()' first in "
    "gunicorn's configuration",
    # No such remedy for eventlet: patched by it, gunicorn's master fails when it stops.
    "eventlet": "",
}

_prepared_pid: int | None = None
_looked_at_connections_pid: int | None = None


def prepare_worker(
    worker: Worker, framework: str | None, *, late: bool | None = None
) -> None:
    """Install the callback of *framework*; ``None`` leaves psycopg2 blocking.

    gunicorn's log says which callback was installed. *late* is whether the worker itself
    monkey-patches, which is after the import of a preloaded application. ``None`` detects
    that, if this is called before that patch. Only the first call in each worker has an
    effect.
    """
    global _prepared_pid
    if _prepared_pid == os.getpid():
        return
    warn_of_inherited_connections(worker)
    if framework:
        if late is None:
            late = framework not in monkey_patched()
        if late and worker.cfg.preload_app:
            _warn_of_preloading(worker, framework)
        unpatched.leave_to_others()
        patch_psycopg(framework)
        worker.log.info(
            "psycogreen: %s wait callback installed, this worker is green", framework
        )
    else:
        worker.log.warning(
            "psycogreen: no wait callback installed: %s is not a gevent or eventlet "
            "worker, so psycopg2 blocks it; to make it green, %s",
            type(worker).__name__,
            GUNICORN.how_to_be_green,
        )
    _prepared_pid = os.getpid()


def warn_of_inherited_connections(worker: Worker) -> None:
    """Warn about psycopg2 connections that this worker shares with other workers.

    The fork duplicates their socket: the server receives what several workers write as
    one stream, and each worker may read an answer for another one. Only the first call in
    each worker checks: later the worker may have its own connections.
    """
    global _looked_at_connections_pid
    if _looked_at_connections_pid == os.getpid():
        return
    _looked_at_connections_pid = os.getpid()
    inherited = _count(connection, lambda conn: not conn.closed)
    if inherited:
        worker.log.warning(
            "psycogreen: open psycopg2 connections made before the fork: %d. Every "
            "worker shares them and they will be corrupted: open connections in the "
            "worker, on first use or in post_fork, not where --preload imports the "
            "application (SQLAlchemy: call engine.dispose(close=False) in post_fork)",
            inherited,
        )


def _warn_of_preloading(worker: Worker, framework: str) -> None:
    """Warn about an application that was imported before the monkey patch."""
    instead = _IN_CONFIGURATION[framework]
    worker.log.warning(
        "psycogreen: --preload has imported the application before %s could "
        "monkey-patch it: its threading.local() objects are shared by all requests, its "
        "threading.Lock() objects stop the worker when one request waits for another: "
        "leave out --preload%s",
        framework,
        instead,
    )
    pool = sys.modules.get("psycopg2.pool")
    native_lock = type(native.original("_thread", "allocate_lock")())
    # eventlet's monkey patch replaces the locks that it finds in objects.
    if pool is None or framework == "eventlet":
        return
    pools = _count(
        pool.AbstractConnectionPool,
        lambda pool: any(type(value) is native_lock for value in vars(pool).values()),
    )
    if pools:
        worker.log.warning(
            "psycogreen: psycopg2 pools with a lock made before the monkey patch: %d. "
            "When one request waits for such a lock, the worker stops answering: "
            "make the pools in the worker%s",
            pools,
            instead,
        )


def _count(kind: type, condition: Callable[[Any], bool]) -> int:
    """Return how many objects of *kind* meet the condition."""
    # isinstance() reads an object's __class__, which would evaluate the application's
    # lazy proxies.
    return sum(
        issubclass(type(thing), kind) and condition(thing) for thing in gc.get_objects()
    )
