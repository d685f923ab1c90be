"""What it costs to connect and close, in CPU time of this side.

Usage: connecting.py [--rounds N]

All ways take turns, each in a process of its own, so that what else the machine does
hits them alike: see connections.py. It is a part of ``make bench``. Run by itself it
prints the medians, and the CPU time divided by that of psycogreen 1.0.2 under the same
framework.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import subprocess
import sys

from costs import run
from figures import Figures
from psycopg2.extensions import make_dsn, parse_dsn
from rich.progress import track
from scale import FULL, OURS, Scale
from ways import ROOT, WAYS, fetch_others

from psycogreen._check.postgres import Server, postgres

COMPARED = [
    *("gevent", "gevent-1.0.2", "psycopg3"),
    *("eventlet", "eventlet-1.0.2", "threads", "asyncpg"),
]

GREENLETS = 100
"""How many connect by the slow name at once."""


def measure_connections(figures: Figures, scale: Scale, server: Server) -> None:
    """Connect and close, one after another, at each place."""
    stretches = [scale.connections // 5, scale.connections]
    places = _places(server).items()
    runs = list(itertools.product(range(scale.connections_rounds), places, COMPARED))
    for _, (place, dsn), way in track(runs, "connecting"):
        program = WAYS[way].connecting_program
        cpu, _ = run(way, 1, stretches, dsn, program=program)
        figures.add("connections", place, way, cpu * 1e6)


def measure_slow_name(figures: Figures, scale: Scale, server: Server) -> None:
    """Connect by a name whose lookup takes long."""
    runs = list(itertools.product(range(scale.slow_name_rounds), OURS))
    for _, way in track(runs, "a slow name"):
        program = str(ROOT / "benchmarks" / "slow_name.py")
        result = subprocess.run(
            [sys.executable, program, way, str(GREENLETS), str(scale.lookup)],
            env={**WAYS[way].variables(), "DSN": server.dsn},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        told = json.loads(result.stdout)
        stall = told["longest stall"] * 1000
        figures.add("slow name", "longest stall, ms", way, stall)
        figures.add("slow name", f"lookups for {GREENLETS}", way, told["lookups"])


def _places(server: Server) -> dict[str, str]:
    """Return the connection strings that are compared, by what they show."""
    port = parse_dsn(server.dsn)["port"]
    return {
        "unix socket": server.unix_dsn,
        "127.0.0.1": make_dsn(server.dsn, host="127.0.0.1", port=port),
        "localhost": make_dsn(server.dsn, host="localhost", port=port),
    }


def main() -> None:
    """Do as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=FULL.connections_rounds)
    options = parser.parse_args()
    fetch_others()
    found = Figures({})
    with postgres() as server:
        scale = dataclasses.replace(FULL, connections_rounds=options.rounds)
        measure_connections(found, scale, server)
        measure_slow_name(found, scale, server)
    for place, ways in found.samples["connections"].items():
        for way in ways:
            median = found.median("connections", place, way)
            former = f"{WAYS[way].framework}-1.0.2"
            ratio = (
                median / found.median("connections", place, former)
                if former in ways
                else 0
            )
            print(
                f"{place:12} {way:16} {median:7.1f} us {f'{ratio:5.2f}' if ratio else ''}"
            )
    for case, ways in found.samples["slow name"].items():
        for way, samples in ways.items():
            print(f"slow name: {case:18} {way:14}", *(f"{s:.1f}" for s in samples))


if __name__ == "__main__":
    main()
