"""The number of rounds, queries and requests of each measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ways import WAYS

OURS = ["gevent", "gevent-pure", "eventlet", "eventlet-pure"]
COMPARED = [*OURS, "gevent-1.0.2", "eventlet-builtin"]


@dataclass(frozen=True)
class Scale:
    """The size of every measure."""

    greenlets: Mapping[int, int]
    """The number of rounds, for each number of greenlets."""
    queries: int
    """How many queries the greenlets share in each round."""
    instructions: Sequence[tuple[str, int]]
    """Ways and greenlets for which instructions are counted."""
    connections: int
    """How many connections are made and closed each time."""
    connections_rounds: int
    slow_name_rounds: int
    lookup: float
    """How many seconds the lookup of the slow name takes."""
    rows_rounds: int
    large_rounds: int
    megabytes: int
    """The size of the large result."""
    copies_rounds: int
    copied_rows: int
    """How many rows ``COPY`` copies."""
    object_megabytes: int
    """The size of the large object."""
    serving_rounds: int
    seconds: float
    """How many seconds a worker is loaded with requests in each round."""
    sleepers_rounds: int
    sleepers: int
    """How many requests sleep at the same time."""
    sleep: float
    """Seconds they sleep."""


FULL = Scale(
    # Most rounds for typical numbers, few where opening the connections takes long.
    greenlets={1: 5, 10: 7, 50: 9, 500: 3},
    queries=10_000,
    instructions=[
        *((way, 10) for way in WAYS),
        *((way, greenlets) for way in COMPARED for greenlets in (1, 50)),
        ("threads", 1),
        *((way, 500) for way in OURS),
    ],
    connections=400,
    connections_rounds=9,
    slow_name_rounds=5,
    lookup=1,
    rows_rounds=5,
    large_rounds=3,
    megabytes=100,
    copies_rounds=7,
    copied_rows=500_000,
    object_megabytes=20,
    serving_rounds=3,
    seconds=3,
    sleepers_rounds=5,
    sleepers=1000,
    sleep=1,
)

# Only to test that the benchmarks work: the figures are not meaningful.
QUICK = Scale(
    greenlets={10: 1, 50: 1},
    queries=500,
    instructions=(),
    connections=20,
    connections_rounds=1,
    slow_name_rounds=1,
    lookup=0.1,
    rows_rounds=1,
    large_rounds=1,
    megabytes=1,
    copies_rounds=1,
    copied_rows=1000,
    object_megabytes=1,
    serving_rounds=1,
    seconds=0.3,
    sleepers_rounds=1,
    sleepers=20,
    sleep=0.1,
)
