"""Connect and close again and again in one of the ways. A process of a benchmark.

Usage: connections.py WAY GREENLETS CONNECTIONS...

Each number of CONNECTIONS, shared among the greenlets, is a stretch of its own: a
line of JSON tells what it took. The variable DSN says where the server is.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from ways import WAYS


def work(connect: Callable[..., Any], dsn: str, connections: int) -> None:
    """Make so many connections, one after another."""
    for _ in range(connections):
        connect(dsn).close()


def main() -> None:
    """Run every stretch."""
    name, greenlets, *stretches = sys.argv[1:]
    connect, run_all = WAYS[name].begin()
    dsn = os.environ["DSN"]
    for connections in map(int, stretches):
        each = connections // int(greenlets)
        jobs = [functools.partial(work, connect, dsn, each)] * int(greenlets)
        os.getppid()  # instructions.py has callgrind write down its count here
        cpu, wall = time.process_time(), time.perf_counter()
        run_all(jobs)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        print(json.dumps({"connections": each * len(jobs), "cpu": cpu, "wall": wall}))
    os.getppid()


if __name__ == "__main__":
    main()
