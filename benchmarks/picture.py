"""The picture: what a query costs in each way, and among how many greenlets."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from figures import Figures
from tables import name

mpl.use("svg")  # no display needed
mpl.rcParams["svg.hashsalt"] = "psycogreen"  # the same picture for the same figures

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

OURS, OTHERS = "#2f7d4f", "#b8452f"


def draw(figures: Figures, path: Path) -> None:
    """Draw the CPU time of a query: a panel for each number of greenlets."""
    cases = figures.samples["cpu"]
    figure, panels = plt.subplots(
        1,
        len(cases),
        sharex=True,
        sharey=True,
        squeeze=False,
        figsize=(4 + 2.4 * len(cases), 4.2),
        layout="constrained",
    )
    for panel, case in zip(panels[0], cases, strict=True):
        _draw_case(panel, figures, case)
    figure.suptitle("greenlets")
    figure.supxlabel("CPU time of one query, µs: median and range of the rounds")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _draw_case(panel: Axes, figures: Figures, case: str) -> None:
    ways = figures.samples["cpu"][case]
    medians = [figures.median("cpu", case, way) for way in ways]
    below = [m - min(ways[way]) for m, way in zip(medians, ways, strict=True)]
    above = [max(ways[way]) - m for m, way in zip(medians, ways, strict=True)]
    panel.barh(
        [name(way) for way in ways],
        medians,
        xerr=[below, above],
        color=[_colour(way) for way in ways],
        error_kw={"elinewidth": 1, "ecolor": "#333333"},
    )
    panel.set_title(case, loc="left")
    panel.spines[["top", "right"]].set_visible(False)
    if not panel.yaxis_inverted():  # shared by all panels
        panel.invert_yaxis()


def _colour(way: str) -> str:
    return OURS if _is_ours(way) else OTHERS


def _is_ours(way: str) -> bool:
    return way.split("-")[0] in ("gevent", "eventlet") and not way.endswith(
        ("1.0.2", "builtin")
    )
