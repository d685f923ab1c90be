"""The options of a pool, with the names that ``psycopg_pool`` uses."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """The options that `psycogreen.pool.Pool` documents. Raise `ValueError` if invalid."""

    min_size: int
    max_size: int
    timeout: float
    max_waiting: int
    max_lifetime: float
    max_idle: float

    def __post_init__(self) -> None:
        """Check the values."""
        if self.min_size < 0:
            msg = f"min_size={self.min_size!r}: it must be 0 or more"
            raise ValueError(msg)
        if self.max_size < max(self.min_size, 1):
            msg = (
                f"max_size={self.max_size!r}: it must be 1 or more, "
                "and at least min_size"
            )
            raise ValueError(msg)
        if self.max_waiting < 0:
            msg = f"max_waiting={self.max_waiting!r}: it must be 0 (no limit) or more"
            raise ValueError(msg)
        for name in ("timeout", "max_lifetime", "max_idle"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                msg = f"{name}={value!r}: it must be a number of seconds above 0"
                raise ValueError(msg)
