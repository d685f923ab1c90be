"""A gunicorn configuration that makes psycopg2 cooperative in green workers.

Without a configuration of your own::

    gunicorn -k gevent -c python:psycogreen.integrations.gunicorn_conf app:app

With one, import this module there. That is enough, also if the configuration has a
``post_fork`` of its own. Call `post_fork` first in it if it makes queries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gunicorn.arbiter import Arbiter

from psycogreen._servers import GUNICORN
from psycogreen.integrations._gunicorn import (
    prepare_worker,
    warn_of_inherited_connections,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from gunicorn.workers.base import Worker

    Hook = Callable[[Arbiter, Worker], object]

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


class _Completed:
    """A configuration's own ``post_fork``, and psycogreen's after it."""

    def __init__(self, own: Hook) -> None:
        self._own = own

    def __call__(self, server: Arbiter, worker: Worker) -> None:
        # Before the configuration's own hook may open connections.
        warn_of_inherited_connections(worker)
        self._own(server, worker)
        post_fork(server, worker)  # does nothing if the hook has called it


_spawn_worker = Arbiter.spawn_worker


def _spawn_green_worker(server: Arbiter) -> object:
    """Spawn a worker that runs `post_fork`, whatever the configuration's hook is.

    A ``post_fork`` that is defined below the import of psycogreen's would replace it, so
    that psycopg2 would block each worker.
    """
    own = server.cfg.post_fork
    if own is not post_fork and not isinstance(own, _Completed):
        server.cfg.set("post_fork", _Completed(own))
    return _spawn_worker(server)


Arbiter.spawn_worker = _spawn_green_worker
