"""The picture: one bar for each request, before and after."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from scenes import Result

mpl.use("svg")  # no display needed
mpl.rcParams["svg.hashsalt"] = "psycogreen"  # the same picture for the same figures

from matplotlib import pyplot as plt

COLOURS = ["#b8452f", "#2f7d4f"]


def draw(results: list[Result], path: Path) -> None:
    """Draw the requests of each of *results*, one panel above the other."""
    figure, panels = plt.subplots(
        len(results), sharex=True, figsize=(9, 2.6 * len(results)), layout="constrained"
    )
    for panel, result, colour in zip(panels, results, COLOURS, strict=True):
        bars = sorted(result.requests, key=lambda request: request.end)
        panel.barh(
            range(len(bars)),
            [request.duration for request in bars],
            left=[request.start for request in bars],
            height=0.7,
            color=colour,
        )
        panel.set_title(
            f"{result.contender.name}: {len(bars)} requests in {result.wall_time:.2f} s",
            loc="left",
        )
        panel.set_ylabel("requests")
        panel.set_yticks([])
        panel.invert_yaxis()
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("seconds since the requests were sent")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
