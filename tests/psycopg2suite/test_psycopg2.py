"""psycopg2's own test suite, with psycogreen's callback."""

import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import psycopg2
import pytest
from conftest import TESTS, environment
from psycopg2suite.process import BROKEN, EXCLUDED

from psycogreen._check.postgres import find_programs, postgres

CACHE = TESTS.parent / ".cache"
TIME_BOX = 400  # seconds for one run of the suite

# Without them the tests of two-phase commit and of replication skip themselves.
SETTINGS = {"max_prepared_transactions": "20", "wal_level": "logical"}

pytestmark = pytest.mark.full


@pytest.fixture(scope="session")
def source():
    """The source distribution of the psycopg2 installed, fetched once and unpacked."""
    version = psycopg2.__version__.split()[0]
    name = f"psycopg2-{version}"
    folder = CACHE / name
    if not folder.exists():
        _fetch(f"psycopg2=={version}")
        with tarfile.open(CACHE / f"{name}.tar.gz") as archive:
            archive.extractall(CACHE, filter="data")
    return folder


def _fetch(requirement):
    # pip has the package's metadata made, which asks pg_config where libpq is;
    # nothing is built.
    path = f"{find_programs()}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run(
        [*command, "--no-binary=:all:", f"--dest={CACHE}", requirement],
        env={**os.environ, "PATH": path},
        check=True,
    )


@pytest.fixture(scope="session")
def run(source):
    """Run the suite with a backend; return what became of each test."""
    with postgres(settings=SETTINGS) as server:
        _create_hstore(server)
        env = {
            **os.environ,
            **environment(server),
            "PSYCOPG2_TESTDB": "postgres",
            "PSYCOPG2_TESTDB_HOST": server.host,
            "PSYCOPG2_TESTDB_PORT": str(server.port),
            "PSYCOPG2_TESTDB_USER": "postgres",
            # What it is not given comes from the variables above.
            "PSYCOPG2_TEST_REPL_DSN": "",
        }

        def run(backend):
            program = Path(__file__).with_name("process.py")
            result = subprocess.run(
                [sys.executable, "-P", program, backend, source],
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=TIME_BOX,
                check=False,
            )
            assert result.returncode == 0, result.stdout
            *output, outcomes = result.stdout.splitlines()
            return json.loads(outcomes), "\n".join(output)

        yield run


def _create_hstore(server):
    """Create the extension that some of the tests need."""
    conn = psycopg2.connect(server.dsn)
    conn.cursor().execute("create extension hstore")
    conn.commit()
    conn.close()


@pytest.fixture(scope="session")
def blocking(run):
    """The outcome of each test when psycopg2 blocks."""
    outcomes, _ = run("blocking")
    return outcomes


def count(outcomes):
    """Return how many tests have passed, were skipped, have failed."""
    return Counter(outcome.partition(":")[0] for outcome in outcomes.values())


@pytest.mark.parametrize("backend", ["gevent-libev", "eventlet-epolls"])
def test_suite(run, blocking, backend, capsys):
    """Each test has the outcome that it has when psycopg2 blocks; none fails.

    What skips itself does so for the same reason, and not because psycopg2 is green:
    the tests of COPY, large objects and replication run.
    """
    outcomes, output = run(backend)
    with capsys.disabled():
        print(f"\npsycopg2's own tests, blocking: {dict(count(blocking))}")
        print(f"psycopg2's own tests, {backend}: {dict(count(outcomes))}")
    differing = {
        test: (blocking[test], outcome)
        for test, outcome in outcomes.items()
        if outcome != blocking[test] and test not in EXCLUDED
    }
    assert not differing, output
    assert outcomes.keys() == blocking.keys()
    counts = count(outcomes)
    assert counts["failed"] == 0, output
    assert counts["passed"] > 700
    skipped = [name for name, outcome in outcomes.items() if outcome != "passed"]
    # Those of two-phase commit, COPY and replication all run; of large objects, those
    # are left out that are for servers without 64-bit positions.
    modules = ("TwoPhase", "test_copy.", "test_replication.", "test_lobject.")
    assert not [
        name
        for name in skipped
        if any(module in name for module in modules) and "Not64" not in name
    ]
    assert {*BROKEN, *EXCLUDED} <= {*skipped}
