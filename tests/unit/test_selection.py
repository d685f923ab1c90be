"""The selection of tests, and the rules for skips, in tests/conftest.py."""

import os
import re
import subprocess
import sys

import pytest
from conftest import EXPECT_ALL, TESTS

CASES = """
import pytest

def test_short(): pass

@pytest.mark.full
@pytest.mark.parametrize("n", range(3))
def test_long(n): pass

def test_missing(): pytest.skip("it is not there: apt-get install it")

def test_several_cases(record_property):
    record_property("skipped cases", {"x.py::test_y[1]": "that hub has no threads"})

def test_several_missing(record_property):
    record_property("skipped cases", {"x.py::test_z[1]": "apt-get install it too"})

def test_pointless(): pytest.skip("the hub cannot be forked")
"""


@pytest.fixture
def run(tmp_path):
    """Run pytest on those cases, with the project's conftest; return the process."""
    (tmp_path / "test_cases.py").write_text(CASES)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = full\n")

    def run(*options, **env):
        folders = [str(TESTS), str(TESTS.parent / "tools")]
        inherited = {
            name: os.environ[name] for name in os.environ if name != EXPECT_ALL
        }
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "conftest", "-rA", *options],
            env={**inherited, "PYTHONPATH": os.pathsep.join(folders), **env},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.parametrize("options", [(), ("-n1",)], ids=["alone", "xdist"])
def test_full_tests_are_left_out(run, options):
    """Without --full the marked tests do not run, and the summary names them."""
    result = run(*options)
    assert "3 left out; --full runs them" in result.stdout
    assert "test_cases.py::test_long (3)" in result.stdout
    ended = re.findall(r"(\d+) (passed in part|passed|skipped)", result.stdout)
    assert ended == [("1", "passed"), ("2", "skipped"), ("2", "passed in part")]


@pytest.mark.parametrize("options", [(), ("-n1",)], ids=["alone", "xdist"])
def test_full_tests_run(run, options):
    """With --full the marked tests run."""
    result = run("--full", *options)
    assert "left out" not in result.stdout
    assert "4 passed, 2 skipped, 2 passed in part" in result.stdout


def test_missing_is_a_failure_where_all_is_expected(run):
    """Where everything is expected, a skip for a missing program is a failure."""
    result = run(**{EXPECT_ALL: "1"})
    assert result.returncode == 1
    assert "FAILED test_cases.py::test_missing" in result.stdout
    assert "it is not there: apt-get install it" in result.stdout
    assert "FAILED test_cases.py::test_several_missing" in result.stdout
    assert "apt-get install it too" in result.stdout
    assert re.search(
        r"= 2 failed, 1 passed, 1 skipped,.* 1 passed in part", result.stdout
    )
    assert "error" not in result.stdout


@pytest.mark.parametrize("options", [(), ("-n1",)], ids=["alone", "xdist"])
def test_skipped_cases_are_named(run, options):
    """The summary names the skipped cases of a passed test, with the reasons."""
    result = run(*options)
    [section] = re.findall(
        r"^=+ cases skipped in tests that passed =+\n(.*?)^=",
        result.stdout,
        re.DOTALL | re.MULTILINE,
    )
    assert section.splitlines() == [
        "test_cases.py::test_several_cases",
        "    test_y[1]: that hub has no threads",
        "test_cases.py::test_several_missing",
        "    test_z[1]: apt-get install it too",
    ]
