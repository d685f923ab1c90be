"""Which tests run, and which skips are allowed: the options of tests/conftest.py."""

import os
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

def test_pointless(): pytest.skip("the hub cannot be forked")
"""


@pytest.fixture
def run(tmp_path):
    """Run pytest on those cases, with the project's conftest; return the process."""
    (tmp_path / "test_cases.py").write_text(CASES)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = full\n")

    def run(*options, **env):
        folders = [str(TESTS), str(TESTS.parent / "tools")]
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "conftest", "-rA", *options],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(folders), **env},
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
    assert "1 passed, 2 skipped" in result.stdout


@pytest.mark.parametrize("options", [(), ("-n1",)], ids=["alone", "xdist"])
def test_full_tests_run(run, options):
    """With --full they do."""
    result = run("--full", *options)
    assert "left out" not in result.stdout
    assert "4 passed, 2 skipped" in result.stdout


def test_missing_is_a_failure_where_all_is_expected(run):
    """A test that something to install is missing for fails; other skips are skips."""
    result = run(**{EXPECT_ALL: "1"})
    assert result.returncode == 1
    assert "FAILED test_cases.py::test_missing" in result.stdout
    assert "it is not there: apt-get install it" in result.stdout
    assert "1 failed, 1 passed, 1 skipped" in result.stdout
