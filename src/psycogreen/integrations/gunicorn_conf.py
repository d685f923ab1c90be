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

# gunicorn takes every name of this module that is one of its settings as one.
__all__ = ["post_fork"]


def post_fork(server: Arbiter, worker: Worker) -> None:
    """Install the wait callback that suits *worker*, once, and log that.

    The worker's class decides: gevent's and all that derive from it, eventlet's
    (gunicorn's own, up to version 25, and psycogreen's). Any other worker is
    left blocking, and the log warns of it. Connections that were opened before the
    fork are warned of: call this before anything that opens some.

    gunicorn calls this in each new worker before it monkey-patches. Raise
    `psycogreen.PatchConflict` if another callback is installed: then the worker
    does not boot.
    """
    prepare_worker(worker, GUNICORN.framework_of(type(worker)))
