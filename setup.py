"""Build the C extensions. Everything else about the package is in pyproject.toml.

The extensions are optional: if one cannot be compiled, the package is installed without
it. Without _speedups, _rows or _turns, psycogreen uses their twins in Python. Without
_ugreen, patch_psycopg() raises an error under uWSGI's uGreen.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup

extensions = []
if sys.platform == "linux":
    extensions.append(
        Extension("psycogreen._uwsgi._ugreen", ["src/psycogreen/_uwsgi/_ugreen.c"])
    )
    rows = Extension(
        "psycogreen._interface._rows", ["src/psycogreen/_interface/_rows.c"]
    )
    # Before glibc 2.34, dlopen() is in the library libdl.
    rows.libraries = ["dl"]
    extensions.append(rows)
    if greenlet := find_spec("greenlet"):
        # greenlet's wheels have the header in the package, as greenlet/greenlet.h.
        headers = str(Path(greenlet.origin).parents[1])
        raised = ["src/psycogreen/_wait/_raised.h"]
        sources = ["src/psycogreen/_wait/_speedups.c"]
        speedups = Extension(
            "psycogreen._wait._speedups",
            sources,
            include_dirs=[headers],
            depends=raised,
        )
        extensions.append(speedups)
        sources = ["src/psycogreen/_interface/_turns.c"]
        turns = Extension(
            "psycogreen._interface._turns",
            sources,
            include_dirs=[headers],
            depends=raised,
        )
        extensions.append(turns)
for extension in extensions:
    extension.optional = True

setup(ext_modules=extensions)
