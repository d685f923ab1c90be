"""Make psycopg2 cooperative in uWSGI's workers, with any async engine.

    uwsgi --gevent 100 --import psycogreen.integrations.uwsgi ...
    uwsgi --async 100 --greenlet --import psycogreen.integrations.uwsgi ...

Importing this module installs the wait callback in each worker, and logs it. uWSGI's
other processes, which run no engine, are left alone.
"""

from __future__ import annotations

import os
import sys

import uwsgi
from psycopg2.extensions import get_wait_callback

from psycogreen import patch_psycopg
from psycogreen._install import monkey_patched
from psycogreen._servers import UWSGI
from psycogreen._uwsgi.engine import engine
from psycogreen._uwsgi.postfork import after_fork
from psycogreen._wait import unpatched

__all__: list[str] = []

_prepared_pid: int | None = None


def _prepare_process() -> None:
    """Install the wait callback if this process is a worker, and log it. Idempotent."""
    global _prepared_pid
    worker = uwsgi.worker_id()
    if not worker or _prepared_pid == os.getpid():
        return
    _prepared_pid = os.getpid()
    framework = "gevent" if engine() == "gevent" else "uwsgi"
    where = f"in worker {worker} (pid: {os.getpid()})"
    unpatched.leave_to_others()
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

        _track_no_greenlets()
        # The greenlet runs when the loop does, after uWSGI and the application may have
        # monkey-patched.
        gevent.spawn(_warn_if_unpatched, where)


def _track_no_greenlets() -> None:
    """Turn off gevent's record of where each greenlet was made, on Python 3.15.

    uWSGI makes greenlets while no Python code runs. gevent 26.9 then reads the frame of the
    caller, which does not exist, and the worker crashes.
    """
    if sys.version_info >= (3, 15):
        import gevent

        gevent.config.track_greenlet_tree = False


def _warn_if_unpatched(where: str) -> None:
    if "gevent" not in monkey_patched():
        uwsgi.log(
            f"psycogreen: warning: gevent has not monkey-patched the process {where}, "
            "so all waits except psycopg2's stop its loop: start uWSGI with "
            f"{UWSGI.monkey_patch}"
        )


_prepare_process()  # with --lazy-apps uWSGI imports this after the fork
after_fork(_prepare_process)
