"""The versions of Python that psycogreen supports, and where this machine has them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

VERSIONS = ("3.11", "3.12", "3.13", "3.14", "3.15")

CURRENT = "{}.{}".format(*sys.version_info)

# What a build needs: an interpreter of that version with pip and the header files.
_CHECK = (
    "import ensurepip, sys, sysconfig, pathlib; "
    "assert pathlib.Path(sysconfig.get_path('include'), 'Python.h').exists(); "
    "print('{}.{}'.format(*sys.version_info))"
)


@cache
def find(version: str) -> Path | None:
    """Return the interpreter of *version*, such as "3.13", or ``None``.

    It has pip and the header files. pyenv's versions come before the PATH, where
    pyenv's command of that name works for selected versions only.
    """
    return next((each for each in _places(version) if _is(each, version)), None)


def found() -> dict[str, Path]:
    """Return the interpreters that this machine has, by version."""
    return {version: path for version in VERSIONS if (path := find(version))}


def _places(version: str) -> Iterator[Path]:
    name = f"python{version}"
    pyenv = Path.home().glob(f".pyenv/versions/{version}.*/bin/{name}")
    yield from sorted(pyenv, key=_patch_level, reverse=True)
    if place := shutil.which(name):
        yield Path(place)


def _patch_level(interpreter: Path) -> tuple[int, ...]:
    numbers = interpreter.parents[1].name.split(".")
    return tuple(int(number) for number in numbers if number.isdigit())


def _is(interpreter: Path, version: str) -> bool:
    result = subprocess.run(
        [interpreter, "-c", _CHECK], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() == version
