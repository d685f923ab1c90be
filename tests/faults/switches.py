"""The points at which a greenlet lets others run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

from greenlet import getcurrent, greenlet, settrace


class SwitchPoints:
    """Counts how often the current greenlet is switched away from, in a block.

    And acts at some of these points: before anything else of the loop's goes on.
    """

    def __init__(self, actions: Mapping[int, Callable[[], object]] = {}) -> None:
        """Call *actions* at the points they are given for, counted from one.

        They are called during a switch and must not switch themselves.
        """
        self.count = 0
        self._actions = actions

    def __enter__(self) -> Self:
        """Begin to count."""
        self._greenlet = getcurrent()
        self._previous = settrace(self._trace)
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop counting."""
        settrace(self._previous)

    def _trace(self, event: str, switch: tuple[greenlet, greenlet]) -> None:
        if switch[0] is self._greenlet:
            self.count += 1
            self._actions.get(self.count, int)()
