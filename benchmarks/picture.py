"""Draw the pictures of the CPU time of a query, one comparison in each."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from figures import Figures
from tables import name, number

mpl.use("svg")  # no display needed
mpl.rcParams["svg.hashsalt"] = "psycogreen"  # the same picture for the same figures

from matplotlib import pyplot as plt

OURS, OTHERS = "#2f7d4f", "#b8452f"

# The ways that a reader chooses between. The tables have all ways.
SHOWN = {
    "gevent": OURS,
    "eventlet": OURS,
    "gevent-1.0.2": OTHERS,
    "eventlet-builtin": OTHERS,
    "asyncpg": OTHERS,
    "psycopg3": OTHERS,
    "threads": OTHERS,
}

# The case of each picture, and its description.
PICTURES = {
    "benchmarks.svg": ("50", "50 connections at once"),
    "benchmarks-alone.svg": ("1", "one connection, nothing else to do meanwhile"),
}


def draw(figures: Figures, folder: Path) -> None:
    """Draw each picture whose case was measured into *folder*."""
    for file, (case, situation) in PICTURES.items():
        if case in figures.samples["cpu"]:
            _draw_case(figures, case, situation, folder / file)


def _draw_case(figures: Figures, case: str, situation: str, path: Path) -> None:
    """Draw the CPU time of a query: a bar for each way, the cheapest first."""
    measured = [way for way in SHOWN if way in figures.samples["cpu"][case]]
    medians = {way: figures.median("cpu", case, way) for way in measured}
    ways = sorted(medians, key=medians.__getitem__)
    figure, axes = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
    bars = axes.barh(
        [name(way) for way in ways],
        [medians[way] for way in ways],
        color=[SHOWN[way] for way in ways],
    )
    axes.bar_label(bars, [number(medians[way]) for way in ways], padding=4)
    axes.invert_yaxis()
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.set_title(f"CPU time of one “select 1” in µs, {situation}", loc="left")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
