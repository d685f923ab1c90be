"""Compare a gevent worker with blocking psycopg2 and the same worker with psycogreen.

Run it with ``make demo``.
"""

from __future__ import annotations

from pathlib import Path

import uwsgi_builds
from picture import draw
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from scenes import (
    CONTENDERS,
    HITS,
    HOLD,
    QUERY,
    REQUESTS,
    Result,
    row_lock,
    sleepers,
    uwsgi_contenders,
)

from psycogreen._check.postgres import find_programs, postgres

PICTURE = Path("timeline.svg")


def main() -> None:
    """Run both scenes with every contender; print the tables, draw the picture."""
    console = Console()
    console.print(f"PostgreSQL from {find_programs()}", highlight=False, soft_wrap=True)
    scenes = [
        (
            sleepers,
            f"{REQUESTS} requests at once, each: select pg_sleep({QUERY})",
            REQUESTS,
        ),
        (
            row_lock,
            f"1 request locks a row for {HOLD:g} s, {HITS} others want it",
            HITS,
        ),
    ]
    build = uwsgi_builds.built()
    contenders = CONTENDERS + (uwsgi_contenders(build) if build else [])
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with (
        postgres() as server,
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
    ):
        outcomes = []
        for scene, title, count in scenes:
            results = []
            for contender in contenders:
                task = progress.add_task(
                    f"{scene.__name__}: {contender.name}", total=count
                )
                results.append(
                    scene(
                        contender, server.dsn, lambda task=task: progress.advance(task)
                    )
                )
            outcomes.append((title, results))
    for title, results in outcomes:
        console.print(_table(title, results))
    if not build:
        console.print(
            "left out: uWSGI with gevent, greenlet and uGreen, because none is built "
            "here; make uwsgi builds one (it needs a C compiler)",
            soft_wrap=True,
        )
    draw(outcomes[0][1][: len(CONTENDERS)], PICTURE)
    console.print(f"one bar for each request: {PICTURE.resolve()}", soft_wrap=True)


def _table(title: str, results: list[Result]) -> Table:
    table = Table(title=f"One worker, gunicorn's or uWSGI's. {title}")
    table.title_justify = "left"
    table.add_column("")
    for heading in (
        "answered",
        "wall time",
        "slowest request",
        "queries at once",
        "longest stall of the loop",
    ):
        table.add_column(heading, justify="right")
    for result in results:
        table.add_row(
            result.contender.name,
            f"{result.answered} of {len(result.requests)}",
            f"{result.wall_time:.2f} s",
            f"{result.slowest:.2f} s",
            str(result.queries_at_once),
            _stall(result),
        )
    return table


def _stall(result: Result) -> str:
    if not result.contender.ticks:
        return "not measured"
    stall = result.longest_stall
    return "forever" if stall is None else f"{stall * 1000:.0f} ms"


if __name__ == "__main__":
    main()
