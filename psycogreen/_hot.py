"""What runs for every query: in C if that was compiled, else in Python.

The two modules have the same names and the same behaviour.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

PURE_VARIABLE = "PSYCOGREEN_PURE"
"""The environment variable that forces Python, if it is set to anything."""

if TYPE_CHECKING:
    from psycogreen._pure import CHECK_INTERVAL, BaseSet, Entry, entries, make_wait

    speedups: bool
else:
    try:
        if os.environ.get(PURE_VARIABLE):
            raise ImportError(PURE_VARIABLE)
        from psycogreen._speedups import CHECK_INTERVAL, BaseSet, Entry, entries, make_wait

        speedups = True
    except ImportError:
        from psycogreen._pure import CHECK_INTERVAL, BaseSet, Entry, entries, make_wait

        speedups = False

__all__ = ["CHECK_INTERVAL", "BaseSet", "Entry", "entries", "make_wait", "speedups"]
