"""The ways in which a Django request gets a connection."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psycopg2.extensions import parse_dsn
from ways import CONNECTION_POOL, GEVENTPOOL

# How many connections each pool may have.
SIZE = 20


@dataclass(frozen=True)
class DjangoWay:
    """A database backend, and its settings."""

    title: str
    engine: str
    options: dict[str, Any] = field(default_factory=dict)
    """The value of OPTIONS."""
    more: dict[str, Any] = field(default_factory=dict)
    """What else is in the entry of DATABASES."""
    max_age: int | None = 0
    """What CONN_MAX_AGE is."""
    folder: Path | None = None
    """The folder in which the backend was installed, if not in this environment."""

    def database(self) -> dict[str, Any]:
        """Return an entry of DATABASES for the server that DSN names."""
        dsn = parse_dsn(os.environ["DSN"])
        names = {"HOST": "host", "PORT": "port", "NAME": "dbname", "USER": "user"}
        return {
            "ENGINE": self.engine,
            "OPTIONS": self.options,
            "CONN_MAX_AGE": self.max_age,
            **self.more,
            **{name: dsn[ours] for name, ours in names.items()},
        }


_DJANGO = "django.db.backends.postgresql"
_GEVENTPOOL = "django_db_geventpool.backends.postgresql_psycopg2"

DJANGO_WAYS = {
    "django-pool": DjangoWay(
        f"psycogreen's pool of {SIZE}",
        "psycogreen.integrations.django",
        {"pool": {"max_size": SIZE}},
    ),
    "django-geventpool": DjangoWay(
        f"django-db-geventpool, {SIZE}, 10 of them kept",
        _GEVENTPOOL,
        {"MAX_CONNS": SIZE, "REUSE_CONNS": 10},  # as in its README
        folder=GEVENTPOOL,
    ),
    "django-geventpool-all": DjangoWay(
        f"django-db-geventpool, {SIZE}, all kept",
        _GEVENTPOOL,
        {"MAX_CONNS": SIZE, "REUSE_CONNS": SIZE},
        folder=GEVENTPOOL,
    ),
    "django-connection-pool": DjangoWay(
        f"django-db-connection-pool, {SIZE}",
        "dj_db_conn_pool.backends.postgresql",
        more={"POOL_OPTIONS": {"POOL_SIZE": SIZE, "MAX_OVERFLOW": 0}},
        folder=CONNECTION_POOL,
    ),
    "django-kept": DjangoWay(
        "a connection kept by each greenlet", _DJANGO, max_age=None
    ),
    "django-fresh": DjangoWay("a new connection for each request", _DJANGO),
}
