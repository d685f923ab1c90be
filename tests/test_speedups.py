"""When the fast path in C is used, and when the one in Python."""

import os
import shutil
import subprocess
import sysconfig

import greenlet
import pytest
from conftest import TESTS

PACKAGE = TESTS.parent / "src" / "psycogreen"
SOURCES = ["_wait/_speedups.c", "_interface/_turns.c"]
PRINT = """
import psycogreen
psycogreen.patch_psycopg("gevent")
print(psycogreen.status().compiled)
"""


def test_compiled(python):
    """The C extension is used if it was compiled."""
    assert python(PRINT).strip() == "True"


def test_pure(python):
    """PSYCOGREEN_PURE=1 forces Python; 0 or empty it forces nothing."""
    assert python(PRINT, PSYCOGREEN_PURE="1").strip() == "False"
    assert python(PRINT, PSYCOGREEN_PURE="").strip() == "True"
    assert python(PRINT, PSYCOGREEN_PURE="0").strip() == "True"


def test_not_compiled(python):
    """Without the C extension the wait in Python works."""
    program = f"""
import sys
sys.modules["psycogreen._wait._speedups"] = None
from gevent import monkey; monkey.patch_all()
import os, psycopg2
{PRINT}
cursor = psycopg2.connect(os.environ["DSN"]).cursor()
cursor.execute("select 42")
assert cursor.fetchone() == (42,)
"""
    assert python(program).strip() == "False"


def test_old_greenlet(python):
    """The C extension is not used with a greenlet whose C API is too small."""
    program = "import greenlet; greenlet.__version__ = '1.1.3'\n" + PRINT
    assert python(program).strip() == "False"


def test_without_greenlet(python):
    """The C extension is not used without greenlet, which uGreen does not need."""
    program = "import sys; sys.modules['greenlet'] = None; "
    program += "from psycogreen._wait import twin; print(twin.compiled)"
    assert python(program).strip() == "False"


@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler (cc)")
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("optimisation", ["-O0", "-O2"])
def test_compiles_without_warnings(tmp_path, optimisation, source):
    """The C sources compile without warnings."""
    # Methods take their own type for self, as everywhere in CPython.
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-cast-function-type"]
    headers = [sysconfig.get_path("include"), os.path.dirname(greenlet.__path__[0])]
    subprocess.run(
        [
            *("cc", *warnings, optimisation, "-fPIC", "-c"),
            *("-o", str(tmp_path / "object.o")),
            *(f"-I{folder}" for folder in headers),
            str(PACKAGE / source),
        ],
        check=True,
    )
