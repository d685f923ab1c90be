"""The errors of a pool. Django converts each to its own ``OperationalError``."""

from __future__ import annotations

import psycopg2


class PoolTimeout(psycopg2.OperationalError):
    """No connection was free in time."""


class TooManyRequests(psycopg2.OperationalError):
    """Too many callers wait for a connection already."""


class PoolClosed(psycopg2.OperationalError):
    """The pool has been closed."""
