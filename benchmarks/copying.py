"""What COPY and large objects take, beside psycopg2 that blocks.

Usage: copying.py [--rounds N]

All ways take turns, each in a process of its own, so that what else the machine does
hits them alike: see copies.py. It is a part of ``make bench``. Run by itself it prints the
medians, and the time divided by that of psycopg2 that blocks.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator

from figures import Figures
from rich.progress import track
from scale import FULL, OURS, Scale
from ways import ROOT, WAYS

from psycogreen._check.postgres import Server, postgres

COMPARED = [*OURS, "threads"]


def measure_copies(figures: Figures, scale: Scale, server: Server) -> None:
    """Copy rows and use a large object, in each way."""
    runs = list(itertools.product(range(scale.copies_rounds), COMPARED))
    for _, way in track(runs, "COPY and large objects"):
        for told in _run(way, scale, server.unix_dsn):
            operation = told["operation"]
            figures.add("copies", operation, way, told["seconds"])
            figures.add("copies cpu", operation, way, told["CPU seconds"])
            if way != "threads":
                figures.add("stalls", operation, way, told["longest stall"] * 1000)


def _run(way: str, scale: Scale, dsn: str) -> Iterator[dict[str, object]]:
    program = str(ROOT / "benchmarks" / "copies.py")
    amount = [scale.copied_rows, scale.object_megabytes]
    result = subprocess.run(
        [sys.executable, program, way, *map(str, amount)],
        env={**WAYS[way].variables(), "DSN": dsn},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return map(json.loads, result.stdout.splitlines())


def main() -> None:
    """Do as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=FULL.copies_rounds)
    options = parser.parse_args()
    found = Figures({})
    with postgres() as server:
        scale = dataclasses.replace(FULL, copies_rounds=options.rounds)
        measure_copies(found, scale, server)
    for operation in found.samples["copies"]:
        blocking = found.median("copies", operation, "threads")
        for way in COMPARED:
            seconds = found.median("copies", operation, way)
            cpu = found.median("copies cpu", operation, way)
            line = f"{operation:28} {way:14} {seconds:6.3f} s {seconds / blocking:5.2f}"
            line += f"  CPU {cpu:6.3f} s"
            if way != "threads":
                stalls = found.samples["stalls"][operation][way]
                line += f"  longest stall {max(stalls):5.1f} ms"
            print(line)


if __name__ == "__main__":
    main()
