"""The part of ``check`` that runs in a server's worker and reports to the command.

The command listens on a unix socket; an environment variable holds its path. Both sides
write lines of JSON: the command sends a job, the probe sends its steps, then a report
or an error.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from psycogreen._check import report
from psycogreen._check.checking import examine
from psycogreen._check.findings import Worker
from psycogreen._check.tasks import loop
from psycogreen._servers import CELERY, GUNICORN, UWSGI, Server
from psycogreen._uwsgi.engine import engine
from psycogreen._wait import native

SOCKET = "PSYCOGREEN_CHECK_SOCKET"
"""The environment variable with the path of the command's socket."""


@dataclass(frozen=True)
class Job:
    """The arguments of the check."""

    dsn: str
    queries: int
    seconds: float
    colours: bool


def in_gunicorn(worker: type) -> None:
    """Check this gunicorn worker, of class *worker*, in a task of its loop if any."""
    framework = GUNICORN.framework_of(worker)
    run = _runner(GUNICORN, worker.__name__, framework)
    if framework:
        loop(framework).spawn(run)
    else:
        run()


def in_celery(pool: type) -> None:
    """Check this Celery worker, whose pool is *pool*, then end it before it takes tasks."""
    name = pool.__module__.rpartition(".")[2]
    _runner(CELERY, f"{name} pool", CELERY.framework_of(pool))()
    raise SystemExit(0)


def in_uwsgi() -> None:
    """Check this uWSGI worker; with the gevent engine, in a greenlet of its loop."""
    found = engine()
    name = f"{found} engine" if found else "worker without an async engine"
    if found == "gevent":
        loop("gevent").spawn(_runner(UWSGI, name, "gevent"))
    else:
        _runner(UWSGI, name, None, is_green=found is not None)()


def _runner(
    server: Server, name: str, framework: str | None, *, is_green: bool | None = None
) -> Callable[[], None]:
    green = framework is not None if is_green is None else is_green
    worker = Worker(server, name, green)

    def run() -> None:
        _Command().serve(worker, framework)

    return run


class _Command:
    """The command that has started the server, at the other end of the socket."""

    def __init__(self) -> None:
        self._socket = native.original("socket", "socket")(socket.AF_UNIX)

    def serve(self, worker: Worker, framework: str | None) -> None:
        """Run the check in this worker, unless another worker runs it already."""
        with self._socket:
            try:
                self._socket.connect(os.environ[SOCKET])
                line = self._socket.makefile("r").readline()
            except OSError:
                return
            if line:
                self._tell(**self._outcome(Job(**json.loads(line)), worker, framework))

    def _outcome(
        self, job: Job, worker: Worker, framework: str | None
    ) -> dict[str, Any]:
        try:
            found = examine(
                job.dsn,
                framework,
                queries=job.queries,
                seconds=job.seconds,
                say=lambda step: self._tell(step=step),
                worker=worker,
            )
        except Exception as ex:  # noqa: BLE001
            # Report any error: the command waits for an answer.
            return {"error": f"{type(ex).__name__}: {ex}"}
        return {
            "cooperative": found.cooperative,
            "report": report.as_dict(found),
            "lines": list(report.lines(found, colours=job.colours)),
        }

    def _tell(self, **message: object) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")
