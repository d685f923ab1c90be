"""gunicorn's gevent worker with a cooperative psycopg2.

    gunicorn -k psycogreen.integrations.gevent_worker.GeventWorker app:app

It needs no configuration file.
"""

from __future__ import annotations

from gunicorn.workers import ggevent

from psycogreen.integrations._gunicorn import prepare_worker

__all__ = ["GeventWorker"]


class GeventWorker(ggevent.GeventWorker):
    """`gunicorn.workers.ggevent.GeventWorker` that installs gevent's wait callback.

    It is installed only once if ``psycogreen.integrations.gunicorn_conf`` is used too.
    Raise `psycogreen.PatchConflict` on start if another callback is installed.
    """

    def init_process(self) -> None:
        """Install the wait callback, then run the worker as gunicorn does."""
        prepare_worker(self, "gevent")
        super().init_process()
