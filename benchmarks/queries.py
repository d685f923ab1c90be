"""Run a query repeatedly in one of the ways. A process of a benchmark.

Usage: queries.py WAY GREENLETS QUERIES...

The greenlets share each number of QUERIES. Each number is one stretch, whose times are
printed as a line of JSON. The environment variable DSN names the database. SQL is the
query, ``select 1`` by default.
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
    """Make *count* queries."""
    cursor = conn.cursor()
    for _ in range(queries):
        cursor.execute(sql)
        cursor.fetchall()


@contextmanager
def stretch(count: int) -> Iterator[None]:
    """Print the times of the block, which makes *count* queries or connections."""
    os.getppid()  # instructions.py makes callgrind dump its counts at this call
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(json.dumps({"count": count, "cpu": cpu, "wall": wall}))


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
