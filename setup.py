"""The extensions, which metadata cannot describe yet. All else is in pyproject.toml.

They are optional: where one cannot be compiled the package installs without it,
and whoever asks for what it does is told.
"""

import sys

from setuptools import Extension, setup

extensions = []
if sys.platform == "linux":
    extensions.append(Extension("psycogreen._ugreen", ["psycogreen/_ugreen.c"]))
for extension in extensions:
    extension.optional = True

setup(ext_modules=extensions)
