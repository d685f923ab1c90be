"""Measure the cost of a query: CPU time, wall time, instructions.

Each figure comes from a separate process: see queries.py.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from operator import itemgetter

import instructions
from figures import Figures
from rich.progress import track
from scale import Scale
from ways import ROOT, WAYS

from psycogreen._check.postgres import Server

TCP = 50  # greenlets, over 127.0.0.1 as well

_ROW = 1000  # bytes
_LARGE = f"select repeat('x', {_ROW}) from generate_series(1, {{}})"

_ROWS = 50  # greenlets
_HUNDRED_ROWS = (
    "select i, i * 2.5::float8, 'name ' || i, i % 2 = 0, timestamptz 'epoch'"
    " from generate_series(1, 100) i"
)


def measure_queries(figures: Figures, scale: Scale, server: Server) -> None:
    """Measure small queries by different numbers of greenlets."""
    runs = list(itertools.product(_cases(scale, server), WAYS))
    for (case, greenlets, dsn), way in track(runs, "small queries"):
        stretches = [scale.queries // 10, scale.queries]
        cpu, wall = run(way, greenlets, stretches, dsn)
        figures.add("cpu", case, way, cpu * 1e6)
        figures.add("rate", case, way, 1 / wall)


def _cases(scale: Scale, server: Server) -> Iterator[tuple[str, int, str]]:
    """Yield the cases as they take their turn: name, greenlets, connection string."""
    for turn in range(max(scale.greenlets.values())):
        for greenlets, rounds in scale.greenlets.items():
            if turn < rounds:
                yield str(greenlets), greenlets, server.unix_dsn
        # On 127.0.0.1 the kernel also charges the sender for the receiver's side of the
        # network.
        if turn < scale.greenlets[TCP]:
            yield f"{TCP}, 127.0.0.1", TCP, server.dsn


def measure_rows(figures: Figures, scale: Scale, server: Server) -> None:
    """Fetch 100 rows of 5 columns, converted to Python objects, in each query."""
    case = f"{_ROWS} greenlets"
    queries = scale.queries // 10
    runs = list(itertools.product(range(scale.rows_rounds), WAYS))
    for _, way in track(runs, "100 rows of 5 columns"):
        stretches = [queries // 5, queries]
        cpu, wall = run(way, _ROWS, stretches, server.unix_dsn, _HUNDRED_ROWS)
        figures.add("rows", f"{case}: CPU µs", way, cpu * 1e6)
        figures.add("rows", f"{case}: queries a second", way, 1 / wall)


def measure_large(figures: Figures, scale: Scale, server: Server) -> None:
    """Measure fetching one large result."""
    sql = _LARGE.format(scale.megabytes * 1_000_000 // _ROW)
    for _, way in track(
        list(itertools.product(range(scale.large_rounds), WAYS)), "a large result"
    ):
        cpu, wall = run(way, 1, [1, 1], server.dsn, sql)
        figures.add("large", f"{scale.megabytes} MB", way, wall)
        figures.add("large", f"{scale.megabytes} MB, CPU", way, cpu)


def measure_instructions(figures: Figures, scale: Scale, server: Server) -> None:
    """Count instructions, if valgrind is installed."""
    if not shutil.which("valgrind"):
        print("instructions are not counted: valgrind is missing")
        return
    os.nice(5)  # as in instructions.py: the server gets a higher priority
    # Fewest greenlets first, which is the order of the table's columns.
    runs = sorted(scale.instructions, key=itemgetter(1))
    for way, greenlets in track(runs, "instructions"):
        figure = instructions.measure(way, greenlets, server.dsn, repetitions=1)
        figures.add("instructions", greenlets, way, figure)


def run(
    way: str,
    greenlets: int,
    stretches: list[int],
    dsn: str,
    sql: str = "select 1",
    *,
    program: str | None = None,
) -> tuple[float, float]:
    """Return the CPU seconds and the seconds that a query of the last stretch took.

    Or whatever *program* does instead. The stretches before are a warm-up.
    """
    path = str(ROOT / "benchmarks" / (program or WAYS[way].program))
    result = subprocess.run(
        [sys.executable, path, way, *map(str, [greenlets, *stretches])],
        env={**WAYS[way].variables(), "DSN": dsn, "SQL": sql},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    last = json.loads(result.stdout.splitlines()[-1])
    return last["cpu"] / last["count"], last["wall"] / last["count"]
