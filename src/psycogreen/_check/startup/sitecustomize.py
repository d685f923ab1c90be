"""Start the probe in a worker of the server that ``check`` starts.

Python imports this module when a process of the server starts. That is before the
monkey patch, so it imports only basic modules. When a server's module is imported, it
replaces the method that a worker calls when it serves. The replacement starts the
probe, once.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def _watch_gunicorn(module: ModuleType) -> None:
    """Run the probe when a booted worker notifies gunicorn's arbiter the first time."""
    worker_class: Any = module.Worker
    notify = worker_class.notify

    def notify_and_probe(worker: Any) -> None:  # noqa: ANN401
        notify(worker)
        if worker.booted:
            worker_class.notify = notify
            _probe().in_gunicorn(type(worker))

    worker_class.notify = notify_and_probe


def _watch_celery(module: ModuleType) -> None:
    """Run the probe instead of starting the worker's pool, so that it takes no task."""
    pool_class: Any = module.BasePool

    def probe(pool: Any) -> None:  # noqa: ANN401
        _probe().in_celery(type(pool))

    pool_class.start = probe


_WATCHED = {
    "gunicorn.workers.base": _watch_gunicorn,
    "celery.concurrency.base": _watch_celery,
}


def _probe() -> Any:  # noqa: ANN401
    from psycogreen._check import probe

    return probe


class _Finder:
    """Find the watched modules as usual, and patch them after they are loaded."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:  # noqa: ANN401
        watch = _WATCHED.get(name)
        spec = PathFinder.find_spec(name, path) if watch else None
        if watch is None or spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        load = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            watch(module)

        loader.exec_module = exec_module
        return spec


def _load_the_next() -> None:
    """Load the next sitecustomize on the path, which this one hides."""
    this = sys.modules.pop(__name__)
    sys.path.remove(os.path.dirname(__file__))
    try:
        import sitecustomize  # type: ignore[import-not-found] # noqa: F401
    except ModuleNotFoundError as ex:
        if ex.name != __name__:
            raise
    finally:
        sys.modules.setdefault(__name__, this)


if __name__ == "sitecustomize":
    sys.meta_path.insert(0, _Finder)
    _load_the_next()
