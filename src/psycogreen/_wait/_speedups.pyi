from psycogreen._wait.pure import (
    CHECK_INTERVAL,
    BaseSet,
    Entry,
    entries,
    make_wait,
    polls,
)

__all__ = ["CHECK_INTERVAL", "BaseSet", "Entry", "entries", "make_wait", "polls"]
