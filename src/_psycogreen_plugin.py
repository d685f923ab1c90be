"""The plugin that gevent calls after monkey-patching.

Every process that gevent patches loads this module, if psycogreen is installed. So it
is not part of the psycogreen package, which imports psycopg2.
"""

from __future__ import annotations

import os
import sys
from typing import Any

_LOOK_EVERY = 60.0  # seconds, at most, between looks for psycopg2

_patched_pid: int | None = None


def patch_psycopg(event: object) -> None:
    """Install gevent's wait callback if ``PSYCOGREEN=gevent`` asks for it.

    In a gunicorn worker, gunicorn's log says so. Without the variable it warns of a
    gunicorn worker in which psycopg2 blocks. Raise `ValueError` if the variable asks for
    anything else.
    """
    global _patched_pid
    _patched_pid = _patched_pid or os.getpid()
    value = os.environ.get("PSYCOGREEN", "")
    if value not in ("", "gevent"):
        msg = f"PSYCOGREEN={value!r}: it must be 'gevent', or unset"
        raise ValueError(msg)
    worker = _gunicorn_worker()
    if value and worker:
        from psycogreen.integrations._gunicorn import prepare_worker

        # It is not too late if this process was forked from a patched master.
        prepare_worker(worker, "gevent", late=_patched_pid == os.getpid())
    elif value:
        from psycogreen.gevent import patch_psycopg

        patch_psycopg()
    elif worker:
        import gevent

        gevent.spawn(_warn_if_blocking, worker)


def _gunicorn_worker() -> Any:  # noqa: ANN401
    """Return the gunicorn worker that has called ``patch_all()``, or ``None``."""
    base = sys.modules.get("gunicorn.workers.base")
    frame = sys._getframe() if base else None
    while base and frame:
        caller = frame.f_locals.get("self")
        # isinstance() would make a lazy proxy import its target.
        if issubclass(type(caller), base.Worker):
            return caller
        frame = frame.f_back
    return None


def _warn_if_blocking(worker: Any) -> None:  # noqa: ANN401
    """Log a warning, after *worker* has booted, if psycopg2 is in use and blocks it."""
    import gevent

    delay = 0.1
    # The application may import psycopg2 with its first request.
    while not (worker.booted and "psycopg2._psycopg" in sys.modules):
        gevent.sleep(delay)
        delay = min(2 * delay, _LOOK_EVERY)
    if sys.modules["psycopg2._psycopg"].get_wait_callback() is None:
        worker.log.warning(
            "psycogreen: psycopg2 blocks this gevent worker with every query: set "
            "PSYCOGREEN=gevent, or start gunicorn with "
            "-c python:psycogreen.integrations.gunicorn_conf, or import that module in "
            "your own configuration"
        )
