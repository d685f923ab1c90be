"""Celery's gevent and eventlet workers, with psycopg2 cooperative in them.

    celery -A proj worker -P gevent -I psycogreen.integrations.celery

or, in the configuration, ``include = ["psycogreen.integrations.celery"]``. The
pool decides: gevent's and eventlet's get their wait callback, once in each worker
process, with a line at level INFO in its log; in any other (prefork, threads, solo)
psycopg2 blocks as usual, and a warning in the log says so.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from celery import signals
from celery.concurrency import get_implementation

from psycogreen import PatchConflict, patch_psycopg, status
from psycogreen._servers import CELERY

if TYPE_CHECKING:
    from celery.apps.worker import Worker

__all__: list[str] = []

logger = logging.getLogger("psycogreen")


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
        logger.warning(
            "psycogreen: no wait callback installed: %s is not a gevent or eventlet "
            "pool, psycopg2 blocks in it as usual; to make it green, %s",
            get_implementation(instance.pool_cls).__module__,
            CELERY.how_to_be_green,
        )
        return
    is_patched = status().monkey_patched
    verdict = ", this worker is green" if is_patched else ""
    logger.info("psycogreen: %s wait callback installed%s", framework, verdict)
    if not is_patched:
        logger.warning(
            "psycogreen: %s has not monkey-patched this worker, all waits but "
            "psycopg2's block it: name the pool on the command line (-P %s), where "
            "Celery looks for it early enough",
            framework,
            framework,
        )


def _framework(worker: Worker) -> str | None:
    return CELERY.framework_of(get_implementation(worker.pool_cls))


signals.worker_init.connect(_install)
signals.celeryd_after_setup.connect(_log)
