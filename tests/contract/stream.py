"""Report the result of each test to the process that runs this suite, immediately.

Each message is a line of JSON: first the collected tests, then for each finished test
its name, its outcome and the text for people.
"""

from __future__ import annotations

import json
from typing import TextIO

import pytest

# Names the file descriptor to write to.
VARIABLE = "PSYCOGREEN_TEST_STREAM"


class Stream:
    """A plugin of pytest."""

    def __init__(self, file: TextIO) -> None:
        """Write to *file*."""
        self._file = file
        self._reports: list[pytest.TestReport] = []

    def _write(self, message: object) -> None:
        print(json.dumps(message), file=self._file, flush=True)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Tell which tests there are."""
        self._write([_name(item.nodeid) for item in session.items])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the report on a phase of the test."""
        self._reports.append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Tell what became of the test: the worst of its phases says it."""
        reports, self._reports = self._reports, []
        outcomes = {report.outcome: report for report in reports}
        outcome = next(
            each for each in ("failed", "skipped", "passed") if each in outcomes
        )
        text = outcomes[outcome].longrepr
        if outcome == "skipped":
            text = text[-1]  # of file, line and reason
        elif outcome == "failed":
            sections = outcomes[outcome].sections
            text = "\n".join([str(text), *("\n".join(pair) for pair in sections)])
        self._write([_name(nodeid), outcome, str(text)])


def _name(nodeid: str) -> str:
    """Return a test's name: its module's file and its own, with the parameters."""
    path, _, test = nodeid.partition("::")
    return f"{path.rpartition('/')[2]}::{test}"
