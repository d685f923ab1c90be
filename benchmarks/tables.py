"""Tables of the figures: a row for each way, a column for each case."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from django_ways import DJANGO_WAYS
from figures import Figures
from ways import WAYS

# For human readers, in the order of the tables' rows.
NAMES = {key: way.title for key, way in (*WAYS.items(), *DJANGO_WAYS.items())}

# The ways whose CPU time is the divisor of the ratios.
COMPARED = [
    *(("gevent", "gevent-1.0.2"), ("gevent-pure", "gevent-1.0.2")),
    *(("gevent", "psycopg3"), ("gevent", "asyncpg")),
    *(("eventlet", "eventlet-builtin"), ("eventlet-pure", "eventlet-builtin")),
    *(("eventlet", "asyncpg"), ("gevent", "threads")),
]

# What a reader chooses between, and by which figures.
CHOICE = [
    *(("gevent", "threads"), ("gevent", "gevent-1.0.2")),
    *(("gevent", "psycopg3"), ("gevent", "asyncpg")),
    *(("eventlet", "threads"), ("eventlet", "eventlet-1.0.2"), ("eventlet", "asyncpg")),
]
CHOSEN_BY = {
    "query, 1 connection": ("cpu", "1"),
    "10": ("cpu", "10"),
    "50": ("cpu", "50"),
    "500": ("cpu", "500"),
    "100 rows, 50": ("rows", "50 greenlets: CPU µs"),
    "connect, unix socket": ("connections", "unix socket"),
    "127.0.0.1": ("connections", "127.0.0.1"),
    "localhost": ("connections", "localhost"),
}

TITLES = {
    "cpu": "CPU time of a query, µs",
    "rate": "Queries a second",
    "instructions": "Instructions of a query",
    "connections": "CPU time of connecting and closing, µs",
    "slow name": "Connecting by a name whose lookup takes a second",
    "rows": "100 rows of 5 columns",
    "large": "A large result: seconds",
    "copies": "COPY and large objects: seconds",
    "copies cpu": "COPY and large objects: CPU seconds",
    "stalls": "COPY and large objects: for how long the loop stands still, ms",
    "requests": "Requests a second, one worker",
    "request cpu": "CPU time of a request, µs",
    "p99": "99th percentile of the answer's time, ms",
    "django": "Django, one gevent worker, 50 clients",
    "sleepers": "Requests that sleep, one worker",
}

BY_GREENLETS = {"cpu", "rate", "instructions"}


@dataclass(frozen=True)
class Table:
    """A table of texts."""

    title: str
    headings: list[str]
    rows: list[list[str]]


def tables(figures: Figures) -> Iterator[Table]:
    """Yield a table for each measure of the figures."""
    for measure, title in TITLES.items():
        if measure in figures.samples:
            yield _table(figures, measure, title)
            if measure == "cpu":
                yield _ratios(figures)
            if measure == "copies":
                yield _divided(figures)
    yield _environment(figures)


def _table(figures: Figures, measure: str, title: str) -> Table:
    cases = figures.samples[measure]
    ways = [way for way in NAMES if any(way in found for found in cases.values())]
    rows = [
        [name(way), *(_cell(found.get(way)) for found in cases.values())]
        for way in ways
    ]
    corner = "greenlets" if measure in BY_GREENLETS else ""
    return Table(title, [corner, *cases], rows)


def _ratios(figures: Figures) -> Table:
    cases = figures.samples["cpu"]
    rows = [
        [
            name(ours),
            name(theirs),
            *(_ratio(figures, "cpu", case, ours, theirs) for case in cases),
        ]
        for ours, theirs in COMPARED
        if all(ours in found and theirs in found for found in cases.values())
    ]
    return Table("CPU time, divided by another's", ["greenlets", "", *cases], rows)


def _divided(figures: Figures) -> Table:
    cases = figures.samples["copies"]
    ways = [way for way in NAMES if all(way in found for found in cases.values())]
    rows = [[name(way)] for way in ways if way != "threads"]
    for row, way in zip(rows, ways, strict=False):
        for case in cases:
            seconds = figures.median("copies", case, way)
            row.append(f"{seconds / figures.median('copies', case, 'threads'):.2f}")
    return Table(f"The same, divided by {name('threads')}", ["", *cases], rows)


def summary(figures: Figures) -> Table:
    """Return what psycogreen costs as a share of what a reader may choose instead."""
    rows = [
        [
            name(ours),
            name(theirs),
            *(_ratio(figures, *case, ours, theirs) for case in CHOSEN_BY.values()),
        ]
        for ours, theirs in CHOICE
    ]
    title = "CPU time of psycogreen, divided by another's"
    return Table(title, ["", "divided by", *CHOSEN_BY], rows)


def _environment(figures: Figures) -> Table:
    rows = [list(pair) for pair in figures.environment.items()]
    return Table("Where that was measured", ["", "found"], rows)


def _ratio(figures: Figures, measure: str, case: str, ours: str, theirs: str) -> str:
    """Return the median in one way, divided by that in another; nothing without both."""
    found = figures.samples.get(measure, {}).get(case, {})
    if ours not in found or theirs not in found:
        return ""
    divisor = figures.median(measure, case, theirs)
    return f"{figures.median(measure, case, ours) / divisor:.2f}" if divisor else ""


def name(way: str) -> str:
    """Return the name of a way for human readers."""
    return NAMES[way]


def _cell(samples: list[float] | None) -> str:
    """Return the median, and how far the rounds spread."""
    if not samples:
        return ""
    if len(samples) == 1:
        return number(samples[0])
    low, high = number(min(samples)), number(max(samples))
    return f"{number(statistics.median(samples))} ({low}…{high})"


def number(figure: float) -> str:
    """Return three significant digits, or the integer if it has more."""
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:#.3g}"


def rst(tables: Iterable[Table]) -> str:
    """Return tables as a part of a page."""
    return "\n".join([".. Made by 'make bench'.\n", *map(_rst_table, tables)])


def _rst_table(table: Table) -> str:
    lines = "\n".join(
        f"   {'  ' if column else '* '}-{' ' if text else ''}{text}"
        for row in [table.headings, *table.rows]
        for column, text in enumerate(row)
    )
    return (
        f".. list-table:: {table.title}\n"
        f"   :header-rows: 1\n   :stub-columns: 1\n\n{lines}\n"
    )
