"""gunicorn's gevent worker, with psycopg2 cooperative in it.

    gunicorn -k psycogreen.integrations.gevent_worker.GeventWorker app:app

It needs no configuration file.
"""

from __future__ import annotations

from gunicorn.workers import ggevent

from psycogreen.integrations._gunicorn import prepare_worker

__all__ = ["GeventWorker"]


class GeventWorker(ggevent.GeventWorker):
    """`gunicorn.workers.ggevent.GeventWorker` that installs gevent's wait callback.

    Together with ``psycogreen.integrations.gunicorn_conf`` it still installs
    it once. Raise `psycogreen.PatchConflict` on start if another callback is
    installed.
    """

    def init_process(self) -> None:
        """Install the callback, then go on as gunicorn does (this runs the worker)."""
        prepare_worker(self, "gevent")
        super().init_process()
