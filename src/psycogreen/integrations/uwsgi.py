"""What makes psycopg2 cooperative in uWSGI's workers, whatever their engine.

    uwsgi --gevent 100 --import psycogreen.integrations.uwsgi ...
    uwsgi --async 100 --greenlet --import psycogreen.integrations.uwsgi ...

Importing it is all: it installs the callback in each worker, with a line in the
log, and not in uWSGI's other processes, which run no engine.
"""

from __future__ import annotations

import os

import uwsgi
from psycopg2.extensions import get_wait_callback

from psycogreen import patch_psycopg
from psycogreen._install import monkey_patched
from psycogreen._servers import UWSGI
from psycogreen._uwsgi.engine import engine
from psycogreen._uwsgi.postfork import after_fork

__all__: list[str] = []

_prepared_pid: int | None = None


def _prepare_process() -> None:
    """Install the callback if this is a worker, once; say in the log what was done."""
    global _prepared_pid
    worker = uwsgi.worker_id()
    if not worker or _prepared_pid == os.getpid():
        return
    _prepared_pid = os.getpid()
    framework = "gevent" if engine() == "gevent" else "uwsgi"
    where = f"in worker {worker} (pid: {os.getpid()})"
    try:
        patch_psycopg(framework)
    except (ImportError, RuntimeError) as ex:
        state = "is left as it is" if get_wait_callback() else "blocks as usual"
        uwsgi.log(
            f"psycogreen: warning: no wait callback installed {where}, "
            f"psycopg2 {state}: {ex}"
        )
        return
    detail = "" if framework == "gevent" else f" ({engine()})"
    uwsgi.log(f"psycogreen: {framework} wait callback installed{detail} {where}")
    if framework == "gevent":
        import gevent

        # It runs with the loop, when uWSGI and the application have had their turn.
        gevent.spawn(_warn_if_unpatched, where)


def _warn_if_unpatched(where: str) -> None:
    if "gevent" not in monkey_patched():
        uwsgi.log(
            f"psycogreen: warning: gevent has not monkey-patched the process {where}, "
            "all waits but psycopg2's stop its loop: start uWSGI with "
            f"{UWSGI.monkey_patch}"
        )


_prepare_process()  # with --lazy-apps the fork is over when this is imported
after_fork(_prepare_process)
