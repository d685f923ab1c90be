"""How much is measured."""

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
    """How often all ways take their turn, for each number of greenlets."""
    queries: int
    """How many queries are shared among the greenlets each time."""
    instructions: Sequence[tuple[str, int]]
    """Ways and greenlets for which instructions are counted."""
    rows_rounds: int
    large_rounds: int
    megabytes: int
    """The size of the large result."""
    serving_rounds: int
    seconds: float
    """How long a worker is loaded with requests each time."""
    sleepers_rounds: int
    sleepers: int
    """How many requests sleep at once."""
    sleep: float
    """Seconds they sleep."""


FULL = Scale(
    # Most of them where it matters, few where opening connections takes long.
    greenlets={1: 5, 10: 7, 50: 9, 500: 3},
    queries=10_000,
    instructions=[
        *((way, 10) for way in WAYS),
        *((way, greenlets) for way in COMPARED for greenlets in (1, 50)),
        ("threads", 1),
        *((way, 500) for way in OURS),
    ],
    rows_rounds=5,
    large_rounds=3,
    megabytes=100,
    serving_rounds=3,
    seconds=3,
    sleepers_rounds=5,
    sleepers=1000,
    sleep=1,
)

# Whether all of it works; the figures are good for nothing.
QUICK = Scale(
    greenlets={10: 1, 50: 1},
    queries=500,
    instructions=(),
    rows_rounds=1,
    large_rounds=1,
    megabytes=1,
    serving_rounds=1,
    seconds=0.3,
    sleepers_rounds=1,
    sleepers=20,
    sleep=0.1,
)
