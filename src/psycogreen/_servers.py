"""The servers that psycogreen has a plugin for, and the options for green workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Server:
    """A server: its name, its options, and the classes of its green workers."""

    name: str

    green: str
    """The options for workers that run a framework's loop."""

    plugin: str
    """The options that install the wait callback in such workers."""

    instead: str = ""
    """What a user does instead who cannot give these options; empty if all can."""

    monkey_patch: str = ""
    """The option that makes such workers monkey-patch; empty if they always do."""

    frameworks: Mapping[str, str] = field(default_factory=dict)
    """The framework of each green worker's class, by the name of the class's module. Not
    by class: importing the class would fail without the framework, or import it."""

    def framework_of(self, worker: type) -> str | None:
        """Return the framework of a worker's class or of its bases, or ``None``."""
        found = (self.frameworks.get(base.__module__) for base in worker.__mro__)
        return next(filter(None, found), None)

    @property
    def how_to_be_green(self) -> str:
        """The remedy for workers that run no framework."""
        return f"start {self.name} with {self.green} {self.plugin}{self.instead}"

    @property
    def how_to_install(self) -> str:
        """The remedy for green workers without a wait callback."""
        return f"start {self.name} with {self.plugin}{self.instead}"


GUNICORN = Server(
    "gunicorn",
    "-k gevent",
    "-c python:psycogreen.integrations.gunicorn_conf",
    # gunicorn reads one configuration only.
    ", or import that module in your own configuration",
    frameworks={
        "gunicorn.workers.ggevent": "gevent",
        "gunicorn.workers.geventlet": "eventlet",
        "psycogreen.integrations.eventlet_worker": "eventlet",
    },
)

UWSGI = Server(
    "uWSGI",
    "--gevent 100 --gevent-early-monkey-patch",
    "--import psycogreen.integrations.uwsgi",
    monkey_patch="--gevent-early-monkey-patch",
)

CELERY = Server(
    "Celery",
    "-P gevent",
    "-I psycogreen.integrations.celery",
    frameworks={
        "celery.concurrency.gevent": "gevent",
        "celery.concurrency.eventlet": "eventlet",
    },
)
