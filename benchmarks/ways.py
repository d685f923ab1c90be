"""The compared ways to run queries. Each runs in a separate process."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# A folder for each version of Python, since the packages are compiled.
OTHERS = ROOT / ".cache" / f"benchmarks-{sys.implementation.cache_tag}"
FORMER = OTHERS / "psycogreen-1.0.2"
PSYCOPG3 = OTHERS / "psycopg-3"
ASYNCPG = OTHERS / "asyncpg"
GEVENTPOOL = OTHERS / "django-db-geventpool"
CONNECTION_POOL = OTHERS / "django-db-connection-pool"

Job = Callable[[], object]
RunAll = Callable[[Sequence[Job]], object]


@dataclass(frozen=True)
class Way:
    """The kind of concurrency, and how the driver waits."""

    title: str
    framework: str
    """``"gevent"``, ``"eventlet"``, ``"threads"``, or ``"asyncio"``, for which
    `begin` is not called."""
    patch: str | None = None
    """The module whose patch_psycopg() is called. ``None``: none is called, and under
    eventlet its built-in callback stays."""
    driver: str = "psycopg2"
    program: str = "queries.py"
    """The program that makes the queries. All programs take the same arguments."""
    connecting_program: str = "connections.py"
    """The program that connects and closes."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment variables for the process."""

    def variables(self) -> dict[str, str]:
        """Return the environment of the process."""
        # eventlet warns that it is deprecated unless its own tests run.
        return {**os.environ, "EVENTLET_TESTS": "1", **self.env}

    def begin(self) -> tuple[Callable[..., Any], RunAll]:
        """Monkey-patch this process; return the functions that connect and run jobs."""
        run_all = _FRAMEWORKS[self.framework]()
        driver = importlib.import_module(self.driver)
        if self.patch:
            importlib.import_module(self.patch).patch_psycopg()
        return driver.connect, run_all


def _gevent() -> RunAll:
    from gevent import monkey

    monkey.patch_all()
    import gevent

    def run_all(jobs: Sequence[Job]) -> None:
        gevent.joinall([gevent.spawn(job) for job in jobs], raise_error=True)

    return run_all


def _eventlet() -> RunAll:
    import eventlet

    eventlet.monkey_patch()

    def run_all(jobs: Sequence[Job]) -> None:
        for task in [eventlet.spawn(job) for job in jobs]:
            task.wait()

    return run_all


def _threads() -> RunAll:
    from concurrent.futures import ThreadPoolExecutor

    def run_all(jobs: Sequence[Job]) -> None:
        if len(jobs) == 1:
            jobs[0]()
            return
        with ThreadPoolExecutor(len(jobs)) as pool:
            list(pool.map(lambda job: job(), jobs))

    return run_all


_FRAMEWORKS = {"gevent": _gevent, "eventlet": _eventlet, "threads": _threads}

_PURE = {"PSYCOGREEN_PURE": "1"}
_FORMER = {"PYTHONPATH": str(FORMER)}

WAYS = {
    "gevent": Way("psycogreen, gevent", "gevent", "psycogreen"),
    "gevent-pure": Way(
        "psycogreen, gevent, pure Python", "gevent", "psycogreen", env=_PURE
    ),
    "gevent-libuv": Way(
        "psycogreen, gevent on libuv",
        "gevent",
        "psycogreen",
        env={"GEVENT_LOOP": "libuv-cffi"},
    ),
    "gevent-1.0.2": Way(
        "psycogreen 1.0.2, gevent", "gevent", "psycogreen.gevent", env=_FORMER
    ),
    "psycopg3": Way(
        "psycopg 3, gevent",
        "gevent",
        driver="psycopg",
        env={"PYTHONPATH": str(PSYCOPG3)},
    ),
    "eventlet": Way("psycogreen, eventlet", "eventlet", "psycogreen"),
    "eventlet-pure": Way(
        "psycogreen, eventlet, pure Python", "eventlet", "psycogreen", env=_PURE
    ),
    "eventlet-asyncio": Way(
        "psycogreen, eventlet on asyncio",
        "eventlet",
        "psycogreen",
        env={"EVENTLET_HUB": "asyncio"},
    ),
    "eventlet-1.0.2": Way(
        "psycogreen 1.0.2, eventlet", "eventlet", "psycogreen.eventlet", env=_FORMER
    ),
    "eventlet-builtin": Way("eventlet's own callback", "eventlet"),
    "threads": Way("blocking psycopg2, threads", "threads"),
    "asyncpg": Way(
        "asyncpg on uvloop",
        "asyncio",
        driver="asyncpg",
        program="queries_asyncpg.py",
        connecting_program="connections_asyncpg.py",
        env={"PYTHONPATH": str(ASYNCPG)},
    ),
}


def fetch_former() -> None:
    """Install psycogreen 1.0.2 into its own folder, once."""
    _fetch(FORMER, "--no-deps", "psycogreen==1.0.2")


def fetch_others() -> None:
    """Install the other drivers into their own folders, once.

    In the environment of the tests, psycogreen 1.0.2 would replace this one, and Django
    would prefer psycopg 3 to psycopg2.
    """
    fetch_former()
    _fetch(PSYCOPG3, "psycopg[binary]>=3.2")
    _fetch(ASYNCPG, "asyncpg", "uvloop")
    _fetch(GEVENTPOOL, "--no-deps", "django-db-geventpool")
    _fetch(CONNECTION_POOL, "--no-deps", "django-db-connection-pool", "sqlparams")


def _fetch(folder: Path, *what: str) -> None:
    if not folder.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--target", str(folder), *what], check=True)


def fetched_versions() -> dict[str, str]:
    """Return the versions of the other drivers, as `fetch_others` installed them."""
    where = {"psycopg": PSYCOPG3, "asyncpg": ASYNCPG, "uvloop": ASYNCPG}
    where["django-db-geventpool"] = GEVENTPOOL
    where["django-db-connection-pool"] = CONNECTION_POOL
    return {name: _version(name, folder) for name, folder in where.items()}


def _version(name: str, folder: Path) -> str:
    [found] = distributions(name=name, path=[str(folder)])
    return found.version
