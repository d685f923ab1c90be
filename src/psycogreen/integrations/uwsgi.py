"""What makes psycopg2 cooperative in uWSGI's workers, whatever their engine.

    uwsgi --gevent 100 --import psycogreen.integrations.uwsgi ...
    uwsgi --async 100 --greenlet --import psycogreen.integrations.uwsgi ...

Importing it is all: it installs the callback in each worker, with a line in the
log, and not in uWSGI's other processes, which run no engine.
"""

from __future__ import annotations

import contextlib
import os

import uwsgi
from psycopg2.extensions import get_wait_callback

from psycogreen import patch_psycopg
from psycogreen._uwsgi.engine import engine

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
            f"psycogreen: no wait callback installed {where}, psycopg2 {state}: {ex}"
        )
    else:
        detail = "" if framework == "gevent" else f" ({engine()})"
        uwsgi.log(f"psycogreen: {framework} wait callback installed{detail} {where}")


def _prepare_after_fork() -> None:
    """Have uWSGI call `_prepare_process` in each process that it forks."""
    before = getattr(uwsgi, "post_fork_hook", None)
    # uWSGI knows one hook. uwsgidecorators makes it a list, and replaces what it
    # finds when it is imported: better now than by the application, later.
    # Without a master it cannot be imported by anybody.
    if uwsgi.masterpid():
        with contextlib.suppress(ModuleNotFoundError):
            from uwsgidecorators import postfork

            if before and getattr(before, "__module__", "") != postfork.__module__:
                postfork(before)
            postfork(_prepare_process)
            return

    def post_fork_hook() -> None:
        if before:
            before()
        _prepare_process()

    uwsgi.post_fork_hook = post_fork_hook


_prepare_process()  # with --lazy-apps the fork is over when this is imported
_prepare_after_fork()
