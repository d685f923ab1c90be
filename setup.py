"""The extensions, which metadata cannot describe yet. All else is in pyproject.toml.

They are optional: where one cannot be compiled the package installs without it,
and whoever asks for what it does is told.
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
    # dlopen() is in a library of its own before glibc 2.34.
    rows.libraries = ["dl"]
    extensions.append(rows)
    if greenlet := find_spec("greenlet"):
        # Its wheels have the header within the package, as greenlet/greenlet.h.
        headers = str(Path(greenlet.origin).parents[1])
        sources = ["src/psycogreen/_wait/_speedups.c"]
        speedups = Extension(
            "psycogreen._wait._speedups", sources, include_dirs=[headers]
        )
        extensions.append(speedups)
        sources = ["src/psycogreen/_interface/_turns.c"]
        turns = Extension(
            "psycogreen._interface._turns", sources, include_dirs=[headers]
        )
        extensions.append(turns)
for extension in extensions:
    extension.optional = True

setup(ext_modules=extensions)
