"""Connect and close repeatedly in one of the ways. A process of a benchmark.

Usage: connections.py WAY GREENLETS CONNECTIONS...

The greenlets share each number of CONNECTIONS. Each number is one stretch: see queries.py.
The environment variable DSN names the database.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

from queries import stretch
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
        with stretch(each * len(jobs)):
            run_all(jobs)
    os.getppid()


if __name__ == "__main__":
    main()
