from psycogreen._wait.pure import (
    CHECK_INTERVAL,
    BaseSet,
    Entry,
    entries,
    forget,
    make_wait,
    polls,
)

__all__ = [
    "CHECK_INTERVAL",
    "BaseSet",
    "Entry",
    "entries",
    "forget",
    "make_wait",
    "polls",
]
