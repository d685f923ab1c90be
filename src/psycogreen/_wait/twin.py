"""The fast path of a wait: `_speedups` in C if it was compiled, else `pure` in Python.

The two modules have the same names and the same behaviour.
"""

from __future__ import annotations

import contextlib
import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

    from psycogreen._wait import pure


def _load() -> ModuleType:
    """Return the twin to use: ``PSYCOGREEN_PURE=1`` forces Python."""
    if os.environ.get("PSYCOGREEN_PURE", "") in ("", "0"):
        with contextlib.suppress(ImportError):
            return import_module("psycogreen._wait._speedups")
    return import_module("psycogreen._wait.pure")


if TYPE_CHECKING:
    _twin = pure
else:
    _twin = _load()

CHECK_INTERVAL = _twin.CHECK_INTERVAL
BaseSet = _twin.BaseSet
Entry = _twin.Entry
entries = _twin.entries
forget = _twin.forget
make_wait = _twin.make_wait
polls = _twin.polls

compiled = _twin.__name__ == "psycogreen._wait._speedups"
"""Whether the twin in C is used."""
