"""Compare psycogreen with the alternatives, all measured in one run.

Run it with ``make bench``. All ways take turns, so that other load on the machine affects
them equally. --quick only shows that the benchmarks work: its figures, in FOLDER, are not
meaningful.
"""

from __future__ import annotations

import argparse
import resource
from pathlib import Path

import figures
import psycopg2
from connecting import measure_connections, measure_slow_name
from copying import measure_copies
from costs import (
    measure_instructions,
    measure_large,
    measure_queries,
    measure_rows,
)
from figures import Figures
from picture import draw
from rich.console import Console
from rich.table import Table
from scale import FULL, QUICK, Scale
from serving import measure_django, measure_requests, measure_sleepers
from tables import rst, summary, tables
from ways import ROOT, fetch_others

from psycogreen._check.postgres import postgres

MEASURES = [
    *(measure_queries, measure_connections, measure_slow_name),
    *(measure_rows, measure_large, measure_copies),
    *(measure_requests, measure_django, measure_sleepers),
    # Last, because it lowers the priority of this process.
    measure_instructions,
]


def main() -> None:
    """Run the benchmarks that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", type=Path, metavar="FOLDER")
    parser.add_argument("--redraw", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if options.quick:
        write(measure(QUICK), options.quick, options.quick)
    elif options.redraw:
        write(figures.load(ROOT / "benchmarks" / "results.json"))
    else:
        write(measure(FULL))


def measure(scale: Scale) -> Figures:
    """Measure everything."""
    fetch_others()
    _allow_many_files()
    with postgres(max_connections=1100) as server:
        found = Figures(figures.environment(_version(server.dsn)))
        for part in MEASURES:
            part(found, scale, server)
    return found


def write(
    found: Figures, results: Path = ROOT / "benchmarks", docs: Path = ROOT / "docs"
) -> None:
    """Write the figures, the tables and the pictures; print the tables."""
    found.save(results / "results.json")
    for name, shown in ("summary", [summary(found)]), ("table", tables(found)):
        (docs / f"benchmarks-{name}.rst").write_text(rst(shown), encoding="utf-8")
    draw(found, docs)
    console = Console()
    # In a narrower console the figures would be wrapped.
    console.width = max(console.width, 140)
    for table in (summary(found), *tables(found)):
        printed = Table(*table.headings, title=table.title, title_justify="left")
        for row in table.rows:
            printed.add_row(*row)
        console.print(printed)


def _allow_many_files() -> None:
    """Raise the limit of open files for the processes that this one starts."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _version(dsn: str) -> str:
    conn = psycopg2.connect(dsn)
    number = conn.server_version
    conn.close()
    return f"{number // 10000}.{number % 10000}"


if __name__ == "__main__":
    main()
