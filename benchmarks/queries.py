"""Run a query again and again in one of the ways. A process of a benchmark.

Usage: queries.py WAY GREENLETS QUERIES...

Each number of QUERIES, shared among the greenlets, is a stretch of its own: a line
of JSON tells what it took. The variable DSN says where the server is, SQL what the
query is if not ``select 1``.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ways import WAYS


def work(conn: Any, sql: str, queries: int) -> None:  # noqa: ANN401
    """Make so many queries."""
    cursor = conn.cursor()
    for _ in range(queries):
        cursor.execute(sql)
        cursor.fetchall()


@contextmanager
def stretch(queries: int) -> Iterator[None]:
    """Print what the block takes, which makes so many *queries*."""
    os.getppid()  # instructions.py has callgrind write its count here
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(json.dumps({"queries": queries, "cpu": cpu, "wall": wall}))


def main() -> None:
    """Run every stretch."""
    name, greenlets, *stretches = sys.argv[1:]
    connect, run_all = WAYS[name].begin()
    connections = [connect(os.environ["DSN"]) for _ in range(int(greenlets))]
    for conn in connections:
        conn.autocommit = True
    sql = os.environ.get("SQL", "select 1")
    for queries in map(int, stretches):
        each = queries // len(connections)
        jobs = [functools.partial(work, conn, sql, each) for conn in connections]
        with stretch(each * len(jobs)):
            run_all(jobs)
    os.getppid()


if __name__ == "__main__":
    main()
