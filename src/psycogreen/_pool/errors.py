"""What a pool raises. Django takes each for its own ``OperationalError``."""

from __future__ import annotations

import psycopg2


class PoolTimeout(psycopg2.OperationalError):
    """No connection was free in time."""


class TooManyRequests(psycopg2.OperationalError):
    """Too many wait for a connection already."""


class PoolClosed(psycopg2.OperationalError):
    """The pool has been closed."""
