"""The uWSGIs that the tests and the demo run, each with an environment of its own.

PyPI's is built for a Python on first use, with the greenlet engine, and kept in
.cache; Debian's is taken as installed. Each environment has psycogreen in it,
installed anew when its source has changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache"
UWSGI = "2.0.31"
OTHER_PYTHONS = [
    f"3.{minor}" for minor in range(11, 15) if (3, minor) != sys.version_info[:2]
]

DEBIAN = Path("/usr/bin/uwsgi-core")
DEBIAN_PYTHON = Path("/usr/bin/python3")
DEBIAN_PLUGINS = {
    "gevent": "gevent_python3",
    "greenlet": "greenlet_python3",
    "ugreen": "ugreen",
    "asyncio": "asyncio_python3,greenlet_python3",
    "tornado": "tornado_python3,greenlet_python3",
}

ENGINES = {
    "gevent": ("--gevent=100",),
    "greenlet": ("--async=100", "--greenlet"),
    "ugreen": (
        "--async=100",
        "--ugreen",
        "--ugreen-stacksize=2048",
        "--post-buffering=65536",
    ),
}


class Unavailable(Exception):
    """There is no such uWSGI here; the message says what would bring it."""


@dataclass(frozen=True)
class Build:
    """A uWSGI and the environment it runs in."""

    program: Path
    environment: Path
    is_debian: bool = False

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.environment / "bin" / "python"

    def command(self, engine: str | None) -> list[str]:
        """Return the command with what must come first, the engine's plugin."""
        command = [str(self.program)]
        if self.is_debian:
            plugins = ["http", "python3", *filter(None, [DEBIAN_PLUGINS.get(engine)])]
            command.append(f"--plugins={','.join(plugins)}")
        return [*command, f"--home={self.environment}"]


def current() -> Build:
    """Return PyPI's uWSGI for the Python that runs this."""
    return _from_pypi(Path(sys.executable))


def other(version: str) -> Build:
    """Return PyPI's uWSGI for another Python, such as "3.13".

    Raise `Unavailable` if that Python is not found.
    """
    return _from_pypi(_find_python(version))


def debian() -> Build:
    """Return Debian's uWSGI; raise `Unavailable` if it is not installed."""
    plugins = Path("/usr/lib/uwsgi/plugins")
    names = ",".join(["python3", *DEBIAN_PLUGINS.values()]).split(",")
    missing = [name for name in names if not (plugins / f"{name}_plugin.so").exists()]
    if not DEBIAN.exists() or missing:
        msg = (
            "Debian's uWSGI is not installed: apt-get install uwsgi-core "
            "uwsgi-plugin-{python3,gevent-python3,greenlet-python3,asyncio-python3,"
            "tornado-python3} python3-venv"
        )
        raise Unavailable(msg)
    environment = CACHE / "uwsgi-debian"
    _make(environment, DEBIAN_PYTHON, [])
    return Build(DEBIAN, environment, is_debian=True)


def built() -> Build | None:
    """Return PyPI's uWSGI for this Python if it has been built before."""
    environment = _environment(Path(sys.executable))
    if not (environment / "made").exists():
        return None
    return current()


def _from_pypi(python: Path) -> Build:
    if not shutil.which("cc"):
        msg = f"uWSGI {UWSGI} cannot be built: there is no C compiler (cc)"
        raise Unavailable(msg)
    environment = _environment(python)
    _make(environment, python, [f"uwsgi=={UWSGI}"])
    return Build(environment / "bin" / "uwsgi", environment)


def _environment(python: Path) -> Path:
    tag = _ask(python, "import sys; print(sys.implementation.cache_tag)")
    return CACHE / f"uwsgi-{UWSGI}-{tag}"


def _make(environment: Path, python: Path, built: list[str]) -> None:
    """Make the environment, or bring it up to date with psycogreen's source."""
    made = environment / "made"
    pip = [str(environment / "bin" / "pip"), "install", "--quiet"]
    if not made.exists():
        _run([str(python), "-m", "venv", "--clear", str(environment)])
        # As the examples need it. The uwsgi of the extra is built apart, below.
        wheels = ["gevent>=24.10.1", "greenlet", "psycopg2-binary", "flask"]
        _run([*pip, *wheels, "sqlalchemy>=2", "setuptools", "tornado"])
        headers = _ask(
            environment / "bin" / "python",
            "import sysconfig; print(sysconfig.get_path('purelib'))",
        )
        env = {"CFLAGS": f"-I{headers}", "UWSGI_EMBED_PLUGINS": "greenlet"}
        for requirement in built:
            options = ["--no-cache-dir", "--no-binary=uwsgi", requirement]
            _run([*pip, *options], env)
    if not made.exists() or made.stat().st_mtime < _newest_source():
        _run([*pip, "--no-deps", "--force-reinstall", str(ROOT)])
        made.touch()


def _newest_source() -> float:
    sources = [ROOT / "pyproject.toml", ROOT / "setup.py"]
    sources += (ROOT / "psycogreen").rglob("*.[cp]*")
    return max(path.stat().st_mtime for path in sources)


def _find_python(version: str) -> Path:
    """Return the interpreter of that version, from the PATH or from pyenv."""
    name = f"python{version}"
    places = [shutil.which(name), *Path.home().glob(f".pyenv/versions/*/bin/{name}")]
    check = (
        "import ensurepip, sys, sysconfig, pathlib; "
        "assert pathlib.Path(sysconfig.get_path('include'), 'Python.h').exists(); "
        "print('{}.{}'.format(*sys.version_info))"
    )
    for place in filter(None, places):
        if _ask(Path(place), check) == version:
            return Path(place)
    msg = (
        f"no Python {version} is found that uWSGI could be built for, on the PATH or "
        "in ~/.pyenv/versions: docs/contributing.rst tells how to set one up"
    )
    raise Unavailable(msg)


def _ask(python: Path, code: str) -> str:
    result = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=False
    )
    return result.stdout.strip()


def _run(command: list[str], env: dict[str, str] | None = None) -> None:
    result = subprocess.run(
        command,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode:
        msg = f"{' '.join(command)} failed:\n{result.stdout}"
        raise RuntimeError(msg)


if __name__ == "__main__":
    print(current().program)
