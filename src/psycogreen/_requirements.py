"""The coroutine libraries that psycogreen works with, and their oldest versions."""

from __future__ import annotations

import re
from importlib import import_module

# The oldest versions that are tested.
_MINIMUM = {"gevent": "24.10.3", "eventlet": "0.36.1"}


def require(name: str) -> None:
    """Import the library *name*.

    Raise `ImportError`, naming the version needed and the pip command, if it
    is missing or too old.
    """
    needed = _MINIMUM[name]
    remedy = f"pip install '{name}>={needed}'"
    try:
        module = import_module(name)
    except ModuleNotFoundError as ex:
        if ex.name != name:
            raise
        msg = f"{name} is not installed; psycogreen needs {needed} or newer: {remedy}"
        raise ImportError(msg, name=name) from ex
    found = module.__version__
    if newer_needed(name, found):
        msg = f"{name} {found} is too old; psycogreen needs {needed} or newer: {remedy}"
        raise ImportError(msg, name=name)


def newer_needed(name: str, version: str) -> str | None:
    """Return the version of *name* that is needed, if *version* is older."""
    needed = _MINIMUM[name]
    return needed if _release(version) < _release(needed) else None


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers *version* begins with: ``(26, 9, 0)`` for "26.9.0.dev1"."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()
