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

from costs import run
from figures import Figures
from psycopg2.extensions import make_dsn, parse_dsn
from rich.progress import track
from scale import FULL, Scale
from ways import WAYS, fetch_others

from psycogreen._check.postgres import Server, postgres

COMPARED = [
    *("gevent", "gevent-1.0.2", "psycopg3"),
    *("eventlet", "eventlet-1.0.2", "threads", "asyncpg"),
]


def measure_connections(figures: Figures, scale: Scale, server: Server) -> None:
    """Connect and close, one after another, at each place."""
    stretches = [scale.connections // 5, scale.connections]
    places = _places(server).items()
    runs = list(itertools.product(range(scale.connections_rounds), places, COMPARED))
    for _, (place, dsn), way in track(runs, "connecting"):
        program = WAYS[way].connecting_program
        cpu, _ = run(way, 1, stretches, dsn, program=program)
        figures.add("connections", place, way, cpu * 1e6)


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


if __name__ == "__main__":
    main()
