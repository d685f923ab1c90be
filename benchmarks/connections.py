"""Connect and close repeatedly in one of the ways. A process of a benchmark.

Usage: connections.py WAY GREENLETS CONNECTIONS...

The greenlets share each number of CONNECTIONS. Each number is one stretch, whose times are
printed as a line of JSON. The environment variable DSN names the database.
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
    """Make *count* connections, one after another."""
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
        os.getppid()  # instructions.py makes callgrind dump its counts at this call
        cpu, wall = time.process_time(), time.perf_counter()
        run_all(jobs)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        print(json.dumps({"connections": each * len(jobs), "cpu": cpu, "wall": wall}))
    os.getppid()


if __name__ == "__main__":
    main()
