"""The versions of psycopg2, the frameworks and the servers on this machine."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec

import psycopg2
from psycopg2.extensions import libpq_version

from psycogreen import _install
from psycogreen._requirements import newer_needed


def lines() -> Iterator[str]:
    """Return a line for each program: its name, its version and a note."""
    for name, version, note in _rows():
        yield f"{name:<10}  {version or 'not found':<14}  {note}".rstrip()


def own_version() -> str:
    """Return psycogreen's version."""
    from psycogreen import __version__

    return __version__


def _rows() -> Iterator[tuple[str, str | None, str]]:
    status = _install.status()
    folder = os.path.dirname(_install.__file__)
    yield "psycogreen", own_version(), folder
    yield "Python", platform.python_version(), platform.platform()
    waits = f"waits with {status.callback} here" if status.callback else ""
    release = psycopg2.__version__.split()[0]  # type: ignore[attr-defined]
    yield "psycopg2", release, waits
    built = _libpq_release(psycopg2.__libpq_version__)
    yield "libpq", _libpq_release(libpq_version()), f"psycopg2 was built with {built}"
    yield "gevent", _version("gevent"), _of_framework("gevent", _plugin())
    yield "eventlet", _version("eventlet"), _of_framework("eventlet", "")
    yield "greenlet", _version("greenlet"), ""
    yield "gunicorn", _version("gunicorn"), _gunicorn_workers()
    yield "uWSGI", *_uwsgi()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _libpq_release(number: int) -> str:
    """Return a version number such as 170006 as PostgreSQL writes it: 17.6."""
    return f"{number // 10000}.{number % 10000}"


def _of_framework(name: str, note: str) -> str:
    version = _version(name)
    if version is None:
        return ""
    if needed := newer_needed(name, version):
        return f"too old: psycogreen needs {needed} or newer"
    patched = name in _install.monkey_patched()
    return "; ".join(filter(None, ["monkey patch in force" * patched, note]))


def _plugin() -> str:
    value = os.environ.get("PSYCOGREEN")
    return f"psycogreen's plugin: {f'PSYCOGREEN={value}' if value else 'off'}"


def _gunicorn_workers() -> str:
    if not find_spec("gunicorn"):
        return ""
    modules = {
        "gevent": "gunicorn.workers.ggevent",
        "eventlet": "gunicorn.workers.geventlet",
    }
    found = [name for name, module in modules.items() if find_spec(module)]
    return f"its own green workers: {', '.join(found) or 'none'}"


def _uwsgi() -> tuple[str | None, str]:
    # Look in this virtual environment first: it may not be activated.
    path = [sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]
    program = shutil.which("uwsgi", path=os.pathsep.join(path))
    if program is None:
        return None, ""
    return _answer(program) or "unknown", program


def _answer(program: str) -> str:
    """Return the version that *program* reports, or an empty string."""
    try:
        answer = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip()
