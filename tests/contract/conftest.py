"""Fixtures of the contract suite: it runs in a process that is monkey-patched."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator

import children
import frameworks
import psycopg2
import pytest
from psycopg2.extensions import TRANSACTION_STATUS_ACTIVE, set_wait_callback

import psycogreen


@pytest.fixture(scope="session")
def green() -> frameworks.Framework:
    """The framework under test."""
    return frameworks.current()


@pytest.fixture(autouse=True)
def _patched(green: frameworks.Framework) -> Iterator[None]:
    """Patch psycopg2 as an application does, with the detected framework."""
    set_wait_callback(None)
    psycogreen.patch_psycopg()
    yield
    set_wait_callback(None)


@pytest.fixture
def dsn() -> str:
    """The server's connection string."""
    return frameworks.DSN


@pytest.fixture
def connect(dsn: str) -> Iterator[Callable[..., psycopg2.extensions.connection]]:
    """`psycopg2.connect` to the server; closes its connections at the end.

    It terminates the sessions that a failed test has left in a query: close() would wait
    for the query, and the next test may wait for the transaction.
    """
    opened = []

    def connect(**options: object) -> psycopg2.extensions.connection:
        opened.append(psycopg2.connect(dsn, **options))
        return opened[-1]

    yield connect
    for conn in opened:
        if conn.info.transaction_status != TRANSACTION_STATUS_ACTIVE:
            conn.close()
        else:
            _terminate(dsn, conn.get_backend_pid())


def _terminate(dsn: str, pid: int) -> None:
    conn = psycopg2.connect(dsn)
    conn.cursor().execute("select pg_terminate_backend(%s)", [pid])
    conn.close()


@pytest.fixture
def conn(connect: Callable[..., object]) -> object:
    """An open connection."""
    return connect()


@pytest.fixture
def script(dsn):
    """Run code in a new process of the same backend; return what it prints.

    *options* are the interpreter's.
    """

    def script(code, *options):
        start = f"""
import os, sys, warnings
from run import patch
patch({os.environ["PSYCOGREEN_TEST_BACKEND"]!r})
import psycogreen
import psycopg2
import frameworks
warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
psycogreen.patch_psycopg()
green = frameworks.current()
dsn = {dsn!r}

def query():
    conn = psycopg2.connect(dsn)
    cursor = conn.cursor()
    cursor.execute("select 42, pg_sleep(0.3)")
    value = cursor.fetchone()[0]
    conn.close()
    return value

def check():
    with green.ticking():
        assert query() == 42
"""
        result = subprocess.run(
            [
                *(sys.executable, "-P", "-W", "error", *options),
                *("-c", start + textwrap.dedent(code)),
            ],
            env=children.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == 0, result.stdout
        return result.stdout

    return script
