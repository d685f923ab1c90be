"""Celery's gevent and eventlet workers, with psycopg2 cooperative in them.

    celery -A proj worker -P gevent -I psycogreen.integrations.celery

or, in the configuration, ``include = ["psycogreen.integrations.celery"]``. The pool
selects the wait callback, that of gevent or of eventlet. It is installed once in each
worker process, and logged at level INFO. With any other pool (prefork, threads, solo)
psycopg2 blocks as usual, and the log has a warning.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from celery import signals
from celery.concurrency import get_implementation

from psycogreen import PatchConflict, patch_psycopg, status
from psycogreen._servers import CELERY
from psycogreen._wait import unpatched

if TYPE_CHECKING:
    from celery.apps.worker import Worker

__all__: list[str] = []

logger = logging.getLogger("psycogreen")


def _install(sender: Worker, **_: object) -> None:
    """Install the wait callback for the pool of the worker that starts."""
    framework = _framework(sender)
    if framework is None:
        return
    unpatched.leave_to_others()
    try:
        patch_psycopg(framework)
    except (PatchConflict, ImportError) as ex:
        # Celery would only log an Exception, and start a worker that blocks.
        msg = f"psycogreen: {ex}"
        raise SystemExit(msg) from ex


def _log(instance: Worker, **_: object) -> None:
    """Log what was installed, after Celery has set up its log."""
    framework = _framework(instance)
    if framework is None:
        logger.warning(
            "psycogreen: no wait callback installed: %s is not a gevent or eventlet "
            "pool, so psycopg2 blocks it; to make it green, %s",
            get_implementation(instance.pool_cls).__module__,
            CELERY.how_to_be_green,
        )
        return
    is_patched = status().monkey_patched
    verdict = ", this worker is green" if is_patched else ""
    logger.info("psycogreen: %s wait callback installed%s", framework, verdict)
    if not is_patched:
        logger.warning(
            "psycogreen: %s has not monkey-patched this worker, so all waits except "
            "psycopg2's block it: name the pool on the command line (-P %s), where "
            "Celery finds it early enough to patch",
            framework,
            framework,
        )


def _framework(worker: Worker) -> str | None:
    return CELERY.framework_of(get_implementation(worker.pool_cls))


signals.worker_init.connect(_install)
signals.celeryd_after_setup.connect(_log)
