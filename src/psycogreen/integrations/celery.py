"""Celery's gevent and eventlet workers, with psycopg2 cooperative in them.

    celery -A proj worker -P gevent -I psycogreen.integrations.celery

or, in the configuration, ``include = ["psycogreen.integrations.celery"]``. The
pool decides: gevent's and eventlet's get their wait callback, once in each worker
process; in any other (prefork, threads, solo) psycopg2 blocks as usual. Either is
said in the worker's log, at level INFO.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from celery import signals
from celery.concurrency import get_implementation

from psycogreen import PatchConflict, patch_psycopg, status

if TYPE_CHECKING:
    from celery.apps.worker import Worker

__all__: list[str] = []

logger = logging.getLogger("psycogreen")

_FRAMEWORK_OF_POOL = {
    "celery.concurrency.gevent": "gevent",
    "celery.concurrency.eventlet": "eventlet",
}


def _install(sender: Worker, **_: object) -> None:
    """Install the callback that suits the pool of the worker that starts."""
    framework = _framework(sender)
    if framework is None:
        return
    try:
        patch_psycopg(framework)
    except (PatchConflict, ImportError) as ex:
        # Celery would log any Exception, and go on with a worker that blocks.
        msg = f"psycogreen: {ex}"
        raise SystemExit(msg) from ex


def _log(instance: Worker, **_: object) -> None:
    """Say what was installed, now that Celery's log is there."""
    framework = _framework(instance)
    if framework is None:
        logger.info(
            "psycogreen: no wait callback installed: %s is not a gevent or eventlet "
            "pool, psycopg2 blocks in it as usual",
            get_implementation(instance.pool_cls).__module__,
        )
        return
    logger.info("psycogreen: %s wait callback installed", framework)
    if not status().monkey_patched:
        logger.warning(
            "psycogreen: %s has not monkey-patched this worker, all waits but "
            "psycopg2's block it: name the pool on the command line (-P %s), where "
            "Celery looks for it early enough",
            framework,
            framework,
        )


def _framework(worker: Worker) -> str | None:
    pool = get_implementation(worker.pool_cls)
    found = (_FRAMEWORK_OF_POOL.get(base.__module__) for base in pool.__mro__)
    return next(filter(None, found), None)


signals.worker_init.connect(_install)
signals.celeryd_after_setup.connect(_log)
