"""Measure the client's CPU time to connect and close.

Usage: connecting.py [--rounds N] [--connections N] [WAY ...]

All ways take turns, each in a separate process, so that other load on the machine affects
them equally. It prints the median for each way and place in microseconds, and its ratio to
psycogreen 1.0.2 under the same framework.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from collections import defaultdict

from psycopg2.extensions import make_dsn, parse_dsn
from ways import ROOT, WAYS, fetch_others

from psycogreen._check.postgres import Server, postgres

USUAL = ["gevent", "gevent-1.0.2", "eventlet", "eventlet-1.0.2", "threads"]


def places(server: Server) -> dict[str, str]:
    """Return the connection strings to compare, by the name of the place."""
    port = parse_dsn(server.dsn)["port"]
    return {
        "unix socket": server.unix_dsn,
        "127.0.0.1": make_dsn(server.dsn, host="127.0.0.1", port=port),
        "localhost": make_dsn(server.dsn, host="localhost", port=port),
    }


def measure(way: str, dsn: str, connections: int) -> float:
    """Return the CPU seconds that a connection takes, after a warm-up."""
    program = str(ROOT / "benchmarks" / "connections.py")
    result = subprocess.run(
        [sys.executable, program, way, "1", str(connections // 4), str(connections)],
        env={**WAYS[way].variables(), "DSN": dsn},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    last = json.loads(result.stdout.splitlines()[-1])
    return last["cpu"] / last["connections"]


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--connections", type=int, default=400)
    parser.add_argument("ways", nargs="*", default=USUAL, metavar="WAY")
    options = parser.parse_args()
    fetch_others()
    found = defaultdict(list)
    with postgres() as server:
        cases = list(itertools.product(places(server).items(), options.ways))
        for _ in range(options.rounds):
            for (place, dsn), way in cases:
                found[place, way].append(measure(way, dsn, options.connections))
    medians = {case: statistics.median(figures) for case, figures in found.items()}
    for (place, way), median in medians.items():
        former = medians.get((place, f"{WAYS[way].framework}-1.0.2"))
        ratio = f"{median / former:5.2f}" if former else ""
        print(f"{place:12} {way:16} {median * 1e6:7.1f} us {ratio}")


if __name__ == "__main__":
    main()
