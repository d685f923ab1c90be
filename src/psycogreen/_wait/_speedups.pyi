from psycogreen._wait.pure import CHECK_INTERVAL, BaseSet, Entry, entries, make_wait

__all__ = ["CHECK_INTERVAL", "BaseSet", "Entry", "entries", "make_wait"]
