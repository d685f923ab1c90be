"""The check of the order of imports, which ``make lint`` runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")

DOWNWARDS = "The rooms import downwards only"
INTEGRATIONS = "No integration imports another"
CIRCLE = "No modules import each other in a circle, not even for type checking"


@pytest.fixture
def package(tmp_path):
    """A copy of the package's source."""
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    source = ROOT / "src" / "psycogreen"
    return shutil.copytree(source, tmp_path / "psycogreen", ignore=ignore)


def lint_imports(package):
    """Check the package with the project's own contracts; return the process."""
    command = [LINT_IMPORTS, "--no-cache", "--no-logo", ROOT / "pyproject.toml"]
    return subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(package.parent)},
        cwd=package.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def test_order_holds(package):
    """The package keeps every contract."""
    result = lint_imports(package)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "added", "broken"),
    [
        ("_wait/native.py", "from psycogreen._install import status", DOWNWARDS),
        ("_wait/native.py", "from psycogreen import status", DOWNWARDS),
        ("_interface/dsn.py", "from psycogreen import gevent", DOWNWARDS),
        ("gevent.py", "from psycogreen import eventlet", DOWNWARDS),
        ("_install.py", "from psycogreen.integrations import _gunicorn", DOWNWARDS),
        (
            "integrations/metrics.py",
            "from psycogreen.integrations import celery",
            INTEGRATIONS,
        ),
        (
            "_wait/native.py",
            "if TYPE_CHECKING:\n    from psycogreen._wait import callback",
            CIRCLE,
        ),
    ],
)
def test_import_turned_round(package, module, added, broken):
    """One import in the wrong direction breaks the contract about it."""
    with (package / module).open("a") as file:
        file.write(f"\n{added}\n")
    result = lint_imports(package)
    assert result.returncode == 1
    assert f"{broken} BROKEN" in result.stdout


def test_unplaced_module(package):
    """A module that is in no layer breaks the contract."""
    (package / "unplaced.py").touch()
    result = lint_imports(package)
    assert result.returncode == 1
    assert "psycogreen.unplaced" in result.stdout
