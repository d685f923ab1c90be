"""What runs Django's own tests: it tells the outcome of each, and leaves some out.

The file that the variable OUTCOMES names gets them as JSON. EXCLUDED lists, as JSON,
the tests that are not run.
"""

import json
import os
import unittest
from pathlib import Path

from django.test.runner import DiscoverRunner


class Outcomes(unittest.TextTestResult):
    """Keeps what became of each test."""

    def __init__(self, *arguments, **options):
        """Begin with none."""
        super().__init__(*arguments, **options)
        self.outcomes = {}

    def startTest(self, test):
        """Expect it to pass, until something else is known."""
        super().startTest(test)
        self.outcomes.setdefault(test.id(), "passed")

    def addError(self, test, error):
        """Note an error, also of a whole class."""
        super().addError(test, error)
        self.outcomes[test.id()] = "failed"

    def addFailure(self, test, error):
        """Note a failure."""
        super().addFailure(test, error)
        self.outcomes[test.id()] = "failed"

    def addSubTest(self, test, subtest, error):
        """Note the failure of a part."""
        super().addSubTest(test, subtest, error)
        if error:
            self.outcomes[test.id()] = "failed"

    def addSkip(self, test, reason):
        """Note why it was not run."""
        super().addSkip(test, reason)
        self.outcomes[test.id()] = f"skipped: {reason}"

    def addExpectedFailure(self, test, error):
        """Note that it fails, as Django knows."""
        super().addExpectedFailure(test, error)
        self.outcomes[test.id()] = "failed as expected"

    def addUnexpectedSuccess(self, test):
        """Note that it does not fail, which Django does not know."""
        super().addUnexpectedSuccess(test)
        self.outcomes[test.id()] = "passed unexpectedly"


class Runner(DiscoverRunner):
    """Django's, with the outcome of each test."""

    def get_resultclass(self):
        """Return the class that keeps the outcomes."""
        return Outcomes

    def build_suite(self, *arguments, **options):
        """Return the tests that are not excluded."""
        excluded = json.loads(os.environ["EXCLUDED"])
        suite = super().build_suite(*arguments, **options)
        suite._tests = [test for test in suite._tests if test.id() not in excluded]
        return suite

    def suite_result(self, suite, result, **options):
        """Write the outcomes down."""
        Path(os.environ["OUTCOMES"]).write_text(json.dumps(result.outcomes))
        return super().suite_result(suite, result, **options)
