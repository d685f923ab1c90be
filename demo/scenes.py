"""The scenes of the demo: requests that wait for PostgreSQL, with several workers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

import psycopg2
from load import Request, request, requests
from servers import HttpServer, gunicorn, uwsgi
from uwsgi_builds import ENGINES, Build

CONF = "python:psycogreen.integrations.gunicorn_conf"

REQUESTS = 50
QUERY = 0.2  # seconds
HOLD = 1.0  # seconds the row stays locked
HITS = 20
TIME_BOX = 5.0  # seconds for a worker that will never answer

Done = Callable[[], object]


@dataclass(frozen=True)
class Contender:
    """A way to run the application."""

    name: str
    serve: Callable[..., AbstractContextManager[HttpServer]]
    ticks: bool = True
    """Whether a ticker can measure the loop's stalls, which needs a monkey patch."""


_gunicorn = partial(gunicorn, "demo_app:app", "-k", "gevent")

CONTENDERS = [
    Contender("without psycogreen", _gunicorn),
    Contender("with psycogreen", partial(_gunicorn, "-c", CONF)),
]


def uwsgi_contenders(build: Build) -> list[Contender]:
    """Return a contender for each of uWSGI's engines, with psycogreen."""
    options = ("--master", "--lazy-apps", "--module=uwsgi_demo_app:app")
    patch = {"gevent": ["--gevent-early-monkey-patch"]}
    return [
        Contender(
            f"with psycogreen, uWSGI {engine}",
            partial(uwsgi, build, engine, *options, *patch.get(engine, [])),
            ticks=engine in patch,
        )
        for engine in ENGINES
    ]


@dataclass(frozen=True)
class Result:
    """The result of a contender in a scene."""

    contender: Contender
    requests: list[Request]
    queries_at_once: int
    longest_stall: float | None
    """Seconds; ``None`` if the worker never answered again."""

    @property
    def answered(self) -> int:
        """How many requests were answered."""
        return sum(request.error is None for request in self.requests)

    @property
    def wall_time(self) -> float:
        """Seconds from the first request to the last answer."""
        return max(request.end for request in self.requests)

    @property
    def slowest(self) -> float:
        """Seconds the slowest request took."""
        return max(request.duration for request in self.requests)


def sleepers(contender: Contender, dsn: str, done: Done) -> Result:
    """Let 50 requests run ``pg_sleep(0.2)`` each, at the same time."""
    with _serve(contender, dsn) as server:
        requests(REQUESTS, f"{server.url}/sleep/0.0")  # opens the connections
        _stall(server)
        with _watch(dsn, "select pg_sleep%") as watch:
            results = requests(REQUESTS, f"{server.url}/sleep/{QUERY}", done=done)
        return Result(contender, results, watch.most, _stall(server))


def row_lock(contender: Contender, dsn: str, done: Done) -> Result:
    """Let 20 requests wait for a row that another request keeps locked for a second.

    A blocking worker stands still with the first of them. So the request that holds the
    lock never releases it, and the scene needs a time limit.
    """
    with _serve(contender, dsn) as server, ThreadPoolExecutor(1) as pool:
        request(f"{server.url}/setup", method="POST")
        _stall(server)
        url = f"{server.url}/hold/{HOLD}"
        holder = pool.submit(request, url, method="POST", timeout=TIME_BOX)
        _await_lock(dsn)
        with _watch(dsn, "update hits%") as watch:
            hits = requests(
                HITS, f"{server.url}/hit", method="POST", timeout=TIME_BOX, done=done
            )
        results = [holder.result(), *hits]
        return Result(contender, results, watch.most, _stall(server))


@contextmanager
def _serve(contender: Contender, dsn: str) -> Iterator[HttpServer]:
    with contender.serve(env={"DSN": dsn}) as server:
        yield server


def _stall(server: HttpServer) -> float | None:
    answer = request(f"{server.url}/stall", method="POST", timeout=1)
    return None if answer.error else float(json.loads(answer.body)["seconds"])


class _Watch(threading.Thread):
    """Counts the queries that PostgreSQL runs concurrently, in pg_stat_activity."""

    def __init__(self, dsn: str, query: str) -> None:
        super().__init__()
        self.most = 0
        self._dsn = dsn
        self._query = query
        self._stop_asked = threading.Event()

    def run(self) -> None:
        connection = psycopg2.connect(self._dsn)
        connection.autocommit = True
        cursor = connection.cursor()
        while not self._stop_asked.wait(0.01):
            cursor.execute(
                "select count(*) from pg_stat_activity"
                " where state = 'active' and query like %s",
                (self._query,),
            )
            self.most = max(self.most, cursor.fetchone()[0])
        connection.close()

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()


@contextmanager
def _watch(dsn: str, query: str) -> Iterator[_Watch]:
    watch = _Watch(dsn, query)
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()


def _await_lock(dsn: str) -> None:
    """Wait until the holder's transaction has the row."""
    connection = psycopg2.connect(dsn)
    connection.autocommit = True
    cursor = connection.cursor()
    deadline = time.monotonic() + TIME_BOX
    while time.monotonic() < deadline:
        cursor.execute(
            "select 1 from pg_stat_activity where state = 'idle in transaction'"
            " and query like 'select n from hits%'"
        )
        if cursor.fetchone():
            break
        time.sleep(0.01)
    connection.close()
