"""The errors that psycogreen raises in addition to psycopg2's own."""

from __future__ import annotations

import psycopg2


class PatchConflict(RuntimeError):
    """Another wait callback is installed, and `replace` is not set."""


class WaitTimeout(psycopg2.OperationalError):
    """A single wait for PostgreSQL took longer than the callback's *timeout*.

    psycopg2 closes the connection, as it does whenever a wait callback raises.

    This is not a `TimeoutError`: an application on psycopg2 handles database errors,
    and Python does not allow a class with both bases (their memory layouts differ).
    """


def wait_timeout(timeout: float) -> WaitTimeout:
    """Return the error for a wait that took longer than *timeout* seconds."""
    return WaitTimeout(f"wait timed out: PostgreSQL was silent for {timeout:g} seconds")
