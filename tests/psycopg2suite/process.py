"""Run psycopg2's own test suite in this process.

Usage: process.py BACKEND FOLDER

FOLDER is where its source distribution was unpacked. BACKEND is one of the
contract suite's, or ``blocking`` for psycopg2 without psycogreen. The last line of the
output is the outcome of every test, and why it was skipped if it was, as JSON.
"""

import json
import sys
import time
import unittest
from types import SimpleNamespace

from contract.run import patch

# Not run at all, and why.
BROKEN = {
    "tests.test_connection.ConnectionTests.test_pgconn_ptr": (
        "it gives a connection to the system's libpq, which may not be psycopg2's own"
    )
}

# Not run with a callback, and why.
EXCLUDED = {
    "tests.test_connection.ConnectionTests.test_commit_concurrency": (
        "its threads spin without waiting for anything: once they are greenlets, "
        "none of them lets another run"
    )
}

PATIENCE = 10
"""Seconds that a busy server has to notice the end of a replication."""


class Outcomes(unittest.TextTestResult):
    """Keeps what became of each test."""

    def __init__(self, *arguments, **options):
        """Begin with none."""
        super().__init__(*arguments, **options)
        self.outcomes = {}

    def startTest(self, test):
        """Take it to pass, unless something else is heard of it."""
        super().startTest(test)
        self.outcomes[test.id()] = "passed"

    def addError(self, test, error):
        """Note a failure, also of a whole class."""
        super().addError(test, error)
        self.outcomes[test.id()] = "failed"

    def addFailure(self, test, error):
        """Note a failure."""
        super().addFailure(test, error)
        self.outcomes[test.id()] = "failed"

    def addSubTest(self, test, subtest, error):
        """Note a failure of a part."""
        super().addSubTest(test, subtest, error)
        if error:
            self.outcomes[test.id()] = "failed"

    def addUnexpectedSuccess(self, test):
        """Note a failure of another kind."""
        super().addUnexpectedSuccess(test)
        self.outcomes[test.id()] = "failed"

    def addSkip(self, test, reason):
        """Note that it was not run, and why."""
        super().addSkip(test, reason)
        self.outcomes[test.id()] = f"skipped: {reason}"


def make_green(backend):
    """Let psycopg2 wait with psycogreen's callback.

    Its tests are not told, so that they do not skip what psycopg2 alone refuses then.
    """
    patch(backend)
    import psycopg2.extras

    import psycogreen

    psycogreen.patch_psycopg()
    # This is what the tests of green mode install themselves.
    psycopg2.extras.wait_select = psycopg2.extensions.get_wait_callback()


def exclude(suite, excluded):
    """Skip what is *excluded*."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            exclude(test, excluded)
        elif test.id() in excluded:
            name = test.id().rpartition(".")[2]
            setattr(test, name, unittest.skip(excluded[test.id()])(getattr(test, name)))


def await_slots(_seconds):
    """Wait until no replication slot is in use; psycopg2's tests sleep a moment."""
    import psycopg2
    from tests.testconfig import dsn

    conn = psycopg2.connect(dsn)
    conn.autocommit = True
    cursor = conn.cursor()
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        cursor.execute("select count(*) from pg_replication_slots where active")
        if cursor.fetchone() == (0,):
            break
        time.sleep(0.01)
    conn.close()


def main():
    """Patch, run the suite, tell."""
    backend, folder = sys.argv[1:]
    excluded = BROKEN
    if backend != "blocking":
        make_green(backend)
        excluded = {**BROKEN, **EXCLUDED}
    sys.path.insert(0, folder)
    import tests.test_replication

    import tests

    tests.test_replication.time = SimpleNamespace(sleep=await_slots)
    suite = tests.test_suite()
    exclude(suite, excluded)
    runner = unittest.TextTestRunner(sys.stdout, verbosity=2, resultclass=Outcomes)
    print(json.dumps(runner.run(suite).outcomes))


if __name__ == "__main__":
    main()
