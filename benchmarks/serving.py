"""Measure how one gunicorn worker serves requests that make a query."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote_plus

import clients
from django_ways import DJANGO_WAYS
from figures import Figures
from load import request
from processes import cpu_time, memory, peak_memory, worker_pid
from rich.progress import track
from scale import Scale
from servers import HttpServer, gunicorn
from ways import ROOT, WAYS

from psycogreen._check.postgres import Server

WORKERS = {
    "gevent": ["-k", "gevent"],
    "gevent-1.0.2": ["-k", "gevent"],
    "threads": ["-k", "gthread", "--threads=50"],
}

# The query of each request, and the number of clients: one load keeps the processor busy,
# the other waits, with more clients than there are threads.
LOADS = [("select 1", 50), ("select pg_sleep(0.1)", 200)]

# Without gthread, which would take one second for each request of a thread.
GREEN = [way for way in WORKERS if way != "threads"]
BATCHES = 2

DJANGO_CLIENTS = 50


def measure_requests(figures: Figures, scale: Scale, postgres: Server) -> None:
    """Measure a worker under load."""
    runs = itertools.product(range(scale.serving_rounds), LOADS, WORKERS)
    for _, (sql, count), way in track(list(runs), "requests"):
        with _serve(way, postgres.dsn) as server:
            clients.at_once(server, _target(sql), count)  # opens the connections
            before = cpu_time(worker_pid(server))
            load = clients.load(server, _target(sql), count, scale.seconds)
            cpu = cpu_time(worker_pid(server)) - before
        case = f"{sql}, {count} clients"
        figures.add("requests", case, way, load.rate)
        figures.add("p99", case, way, load.p99 * 1000)
        figures.add("request cpu", case, way, cpu / load.requests * 1e6)


def measure_django(figures: Figures, scale: Scale, postgres: Server) -> None:
    """Measure a Django worker under load; its view makes one query."""
    runs = itertools.product(range(scale.serving_rounds), DJANGO_WAYS)
    for _, way in track(list(runs), "Django"):
        with _serve_django(way, postgres.dsn) as server:
            clients.at_once(server, "/query", DJANGO_CLIENTS)  # opens the connections
            before = cpu_time(worker_pid(server))
            load = clients.load(server, "/query", DJANGO_CLIENTS, scale.seconds)
            cpu = cpu_time(worker_pid(server)) - before
        figures.add("django", "requests a second", way, load.rate)
        figures.add("django", "CPU µs a request", way, cpu / load.requests * 1e6)


@contextmanager
def _serve_django(way: str, dsn: str) -> Iterator[HttpServer]:
    folders = [ROOT / "benchmarks", *filter(None, [DJANGO_WAYS[way].folder])]
    options = [
        *("-k", "gevent", "-c", "python:psycogreen.integrations.gunicorn_conf"),
        f"--pythonpath={','.join(map(str, folders))}",
    ]
    env = {"DJANGO_WAY": way, "DSN": dsn}
    with gunicorn("django_app:app", *options, env=env) as server:
        yield server


def measure_sleepers(figures: Figures, scale: Scale, postgres: Server) -> None:
    """Measure many requests that wait concurrently, over open connections."""
    runs = itertools.product(range(scale.sleepers_rounds), GREEN)
    for _, way in track(list(runs), "requests that sleep"):
        with _serve(way, postgres.dsn) as server:
            _open_connections(server, scale.sleepers)
            before = memory(worker_pid(server))
            for _ in range(BATCHES):
                _measure_batch(figures, scale, way, server)
            peak = peak_memory(worker_pid(server))
        more = (peak - before) / scale.sleepers
        figures.add("sleepers", "kB a request", way, more / 1000)
        figures.add("sleepers", "MB in all", way, peak / 1e6)


def _measure_batch(
    figures: Figures, scale: Scale, way: str, server: HttpServer
) -> None:
    before = cpu_time(worker_pid(server))
    target = _target(f"select pg_sleep({scale.sleep})")
    wall = clients.at_once(server, target, scale.sleepers)
    cpu = cpu_time(worker_pid(server)) - before
    case = f"{scale.sleepers:,} for {scale.sleep} s each: seconds"
    figures.add("sleepers", case, way, wall)
    figures.add("sleepers", "CPU µs a request", way, cpu / scale.sleepers * 1e6)


@contextmanager
def _serve(way: str, dsn: str) -> Iterator[HttpServer]:
    options = [
        *WORKERS[way],
        "--worker-connections=1200",
        f"--pythonpath={ROOT / 'benchmarks'}",
    ]
    env = {**WAYS[way].env, "WAY": way, "DSN": dsn}
    with gunicorn("app:app", *options, env=env) as server:
        yield server


def _open_connections(server: HttpServer, count: int) -> None:
    answer = request(f"{server.url}/open?{count}")
    if answer.error:
        raise RuntimeError(answer.error)


def _target(sql: str) -> str:
    return f"/query?{quote_plus(sql)}"
