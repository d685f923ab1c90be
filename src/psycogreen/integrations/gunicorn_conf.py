"""A gunicorn configuration that makes psycopg2 cooperative in green workers.

Without a configuration of your own::

    gunicorn -k gevent -c python:psycogreen.integrations.gunicorn_conf app:app

With one, import `post_fork` into it, or call it inside your own ``post_fork``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycogreen._servers import GUNICORN
from psycogreen.integrations._gunicorn import prepare_worker

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter
    from gunicorn.workers.base import Worker

# gunicorn reads each name of this module that is the name of a setting.
__all__ = ["post_fork"]


def post_fork(server: Arbiter, worker: Worker) -> None:
    """Install the wait callback for *worker* and log it.

    The worker's class selects the callback: gevent's and its subclasses, or eventlet's
    (gunicorn's own up to version 25, and psycogreen's). In any other worker psycopg2
    keeps blocking, and the log has a warning. Connections that were opened before the
    fork are logged too: call this before your own code opens any. A second call in the
    same worker does nothing.

    gunicorn calls this in each new worker before the worker monkey-patches. Raise
    `psycogreen.PatchConflict` if another callback is installed; the worker does not boot
    then.
    """
    prepare_worker(worker, GUNICORN.framework_of(type(worker)))
