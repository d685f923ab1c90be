"""Run psycopg2's own test suite in this process.

Usage: process.py BACKEND FOLDER

FOLDER is where its source distribution was unpacked. BACKEND is one of the
contract suite's, or ``blocking`` for psycopg2 without psycogreen. The last line of the
output is the outcome of every test, as JSON.
"""

import json
import sys
import unittest

from contract.run import patch

# Not run with a callback, and why.
EXCLUDED = {
    "tests.test_connection.ConnectionTests.test_commit_concurrency": (
        "its threads spin without waiting for anything: once they are greenlets, "
        "none of them lets another run"
    )
}


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
        """Note that it was not run."""
        super().addSkip(test, reason)
        self.outcomes[test.id()] = "skipped"


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


def exclude(suite):
    """Skip what is excluded."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            exclude(test)
        elif test.id() in EXCLUDED:
            name = test.id().rpartition(".")[2]
            setattr(test, name, unittest.skip(EXCLUDED[test.id()])(getattr(test, name)))


def main():
    """Patch, run the suite, tell."""
    backend, folder = sys.argv[1:]
    if backend != "blocking":
        make_green(backend)
    sys.path.insert(0, folder)
    import tests

    suite = tests.test_suite()
    if backend != "blocking":
        exclude(suite)
    runner = unittest.TextTestRunner(sys.stdout, verbosity=2, resultclass=Outcomes)
    print(json.dumps(runner.run(suite).outcomes))


if __name__ == "__main__":
    main()
