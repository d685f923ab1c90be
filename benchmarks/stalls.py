"""For how long a loop stands still."""

from __future__ import annotations

import time

from ticker import Ticker
from ways import Job, RunAll


def longest_stall(run_all: RunAll, operation: Job) -> float:
    """Return for how many seconds at most the loop stands still during *operation*."""
    ticker = Ticker(time.sleep, 0.001)
    ended = []

    def tick() -> None:
        ticker.reset()
        while not ended:
            ticker.tick()

    def work() -> None:
        operation()
        ended.append(True)

    run_all([tick, work])
    return ticker.longest_stall
