"""A ticker: while it ticks on time, the event loop is not blocked."""

from __future__ import annotations

import time
from collections.abc import Callable

# In this file Linux reports how long this thread has waited for a processor, in
# nanoseconds.
_SCHEDSTAT = "/proc/thread-self/schedstat"


def _clock() -> float:
    """Return seconds, without the time that this thread has waited for a processor.

    A busy machine must not look like a blocked loop.
    """
    try:
        with open(_SCHEDSTAT) as file:
            waited = int(file.read().split()[1])
    except OSError:
        waited = 0
    return time.monotonic() - waited / 1e9


class Ticker:
    """Sleeps for short intervals, and records the longest delay.

    The time for which the thread waited for a processor does not count.
    """

    def __init__(
        self, sleep: Callable[[float], object], interval: float = 0.005
    ) -> None:
        """Tick every *interval* seconds; *sleep* is the framework's."""
        self.sleep = sleep
        self.interval = interval
        self.reset()

    def reset(self) -> None:
        """Forget all ticks so far."""
        self.ticks = 0
        self.longest_stall = 0.0
        self._last = _clock()

    def run(self) -> None:
        """Tick until killed."""
        self.reset()
        while True:
            self.tick()

    def tick(self) -> None:
        """Sleep once, and note the delay."""
        self.sleep(self.interval)
        now = _clock()
        self.ticks += 1
        stall = now - self._last - self.interval
        self.longest_stall = max(self.longest_stall, stall)
        self._last = now

    def stall(self) -> float:
        """Return the longest delay in seconds, including the current one."""
        return max(self.longest_stall, _clock() - self._last - self.interval)
