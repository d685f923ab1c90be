"""Errors for a missing or too old library name the version and the pip command."""

import re
import sys
import tomllib

import pytest
from conftest import TESTS

FRAMEWORKS = ["gevent", "eventlet"]

each_framework = pytest.mark.parametrize("framework", FRAMEWORKS)


def test_psycopg2_missing(python):
    """Without psycopg2 the import error says what to install."""
    python(
        "import sys\n"
        "sys.modules['psycopg2'] = None\n"
        "try:\n"
        "    import psycogreen\n"
        "except ImportError as ex:\n"
        "    assert 'pip install psycopg2-binary' in str(ex), ex\n"
        "else:\n"
        "    raise AssertionError"
    )


@each_framework
@pytest.mark.parametrize(
    "call", ["psycogreen.patch_psycopg({!r})", "import psycogreen.{}"]
)
def test_framework_missing(python, framework, call):
    """Without the framework the error of patching says what to install."""
    python(
        "import sys, psycogreen\n"
        f"sys.modules[{framework!r}] = None\n"
        "try:\n"
        f"    {call.format(framework)}\n"
        "except ImportError as ex:\n"
        f"    assert '{framework} is not installed' in str(ex), ex\n"
        f'    assert "pip install \'{framework}>=" in str(ex), ex\n'
        "else:\n"
        "    raise AssertionError"
    )


@each_framework
@pytest.mark.parametrize("found", ["0.13.8", "0.9a2", "unknown"])
def test_framework_too_old(python, framework, found):
    """The error for an old framework names the version found and the version needed."""
    python(
        "import sys, types, psycogreen\n"
        f"module = sys.modules[{framework!r}] = types.ModuleType({framework!r})\n"
        f"module.__version__ = {found!r}\n"
        "try:\n"
        f"    psycogreen.patch_psycopg({framework!r})\n"
        "except ImportError as ex:\n"
        f"    assert '{framework} {found} is too old' in str(ex), ex\n"
        f'    assert "pip install \'{framework}>=" in str(ex), ex\n'
        "else:\n"
        "    raise AssertionError"
    )


@each_framework
def test_broken_framework(python, framework, tmp_path):
    """A framework whose import fails is not reported as missing."""
    (tmp_path / f"{framework}.py").write_text("import no_such_module")
    python(
        "import sys, psycogreen\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "try:\n"
        f"    psycogreen.patch_psycopg({framework!r})\n"
        "except ModuleNotFoundError as ex:\n"
        "    assert ex.name == 'no_such_module', ex\n"
        "else:\n"
        "    raise AssertionError"
    )


def test_minimums_are_the_declared_ones():
    """The versions required at run time are those of the package's extras."""
    from psycogreen._requirements import _MINIMUM

    declared = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())
    extras = declared["project"]["optional-dependencies"]
    for name, minimum in _MINIMUM.items():
        assert extras[name] == [f"{name}>={minimum}"]


def test_python_is_supported():
    """The package declares support for this Python."""
    declared = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())
    [minimum] = re.findall(r">=3\.(\d+)", declared["project"]["requires-python"])
    assert sys.version_info >= (3, int(minimum))
