"""Fixtures of the tests: a PostgreSQL server, and processes that use it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest

from psycogreen._postgres import Server, postgres

TESTS = Path(__file__).parent


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A PostgreSQL server for all tests."""
    hba = ["host all with_password 127.0.0.1/32 scram-sha-256"]
    with postgres(hba=hba) as server:
        conn = psycopg2.connect(server.dsn)
        conn.cursor().execute("create role with_password login password 'right'")
        conn.commit()
        conn.close()
        yield server


@pytest.fixture(scope="session")
def dsn(server: Server) -> str:
    """Its connection string."""
    return server.dsn


@pytest.fixture
def examples() -> Path:
    """The folder of the examples."""
    return TESTS.parent / "examples"


@pytest.fixture
def python(server: Server) -> Callable[..., str]:
    """Run Python code, or a file, in a new process; return what it prints.

    Warnings are errors there, except eventlet's own deprecation.
    """

    def python(
        code: str | Path, *arguments: str, timeout: float = 120, **env: str
    ) -> str:
        program = [str(code)] if isinstance(code, Path) else ["-c", code]
        result = subprocess.run(
            [sys.executable, "-P", "-W", "error", *program, *arguments],
            env={**os.environ, **environment(server), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert result.returncode == 0, result.stdout
        return result.stdout

    return python


@pytest.fixture(scope="session")
def distributions(tmp_path_factory):
    """The wheel, built from the sdist, and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    command = [
        sys.executable,
        "-m",
        "build",
        "--outdir",
        str(folder),
        str(TESTS.parent),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    [wheel] = folder.glob("*.whl")
    [sdist] = folder.glob("*.tar.gz")
    return wheel, sdist


def environment(server: Server) -> dict[str, str]:
    """Return the variables by which a process finds the server and the tools."""
    root = TESTS.parent
    folders = [root / "tools", root / "examples", TESTS / "contract"]
    return {
        "DSN": server.dsn,
        "PSYCOGREEN_TEST_DSN": server.dsn,
        "PSYCOGREEN_TEST_UNIX_DSN": server.unix_dsn,
        # Silences eventlet's deprecation warning and changes nothing else. (-W
        # cannot: the message begins with a line break, the category is eventlet's.)
        "EVENTLET_TESTS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
    }
