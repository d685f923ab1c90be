"""Child processes: how they start and end, and what a spawned one does.

Scripts import this module. It does not import pytest, which takes as long as all else
that a script needs.
"""

from __future__ import annotations

import os

import psycopg2
import run

import psycogreen
from psycogreen._wait import native


def environment() -> dict[str, str]:
    """Return the variables of a process that imports the framework.

    It starts in half the time without eventlet's own resolver, which the process of the
    suite itself has.
    """
    return {**os.environ, "EVENTLET_NO_GREENDNS": "yes"}


def exit_status(pid: int) -> int:
    """Wait for the end of a child without the framework; return its exit status.

    gevent's own ``waitpid()`` never returns if the child's signal arrives while the fork
    is under way, with psycopg2 or without it. A child that ends at once makes it likely.
    """
    _, status = native.original("os", "waitpid")(pid, 0)
    return os.waitstatus_to_exitcode(status)


def query(dsn: str) -> int:
    """Connect by a host name, and query.

    For psycogreen this form of 127.0.0.1 is a name, which is looked up in a native thread:
    the hosts file does not have it. `getaddrinfo` accepts it.
    """
    conn = psycopg2.connect(dsn.replace("host=127.0.0.1", "host=127.1"))
    cursor = conn.cursor()
    cursor.execute("select 42, pg_sleep(0.05)")
    value = cursor.fetchone()[0]
    conn.close()
    return value


def spawned(backend: str, dsn: str) -> None:
    """Patch and query in a child that multiprocessing has spawned."""
    run.patch(backend)
    psycogreen.patch_psycopg()
    assert query(dsn) == 42
