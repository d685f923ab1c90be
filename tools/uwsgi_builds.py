"""The uWSGIs that the tests and the demo run, each with an environment of its own.

PyPI's is built for a Python on first use, with the greenlet engine, and kept in
.cache; Debian's is taken as installed.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import cache
import pythons
from commands import run

UWSGI = "2.0.31"
OTHER_PYTHONS = [each for each in pythons.VERSIONS if each != pythons.CURRENT]

# As the examples need it. The uwsgi of the extra is built apart, below.
WHEELS = [
    "gevent>=24.10.3",
    "greenlet",
    "psycopg2-binary",
    "flask",
    "sqlalchemy>=2",
    "setuptools",
    "tornado",
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
    found = pythons.find(version)
    if not found:
        msg = (
            f"no Python {version} is found that uWSGI could be built for, on the PATH "
            "or in ~/.pyenv/versions: docs/contributing.rst tells how to set one up"
        )
        raise Unavailable(msg)
    return _from_pypi(found)


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
    environment = cache.environment("uwsgi-debian", DEBIAN_PYTHON, WHEELS)
    return Build(DEBIAN, environment, is_debian=True)


def built() -> Build | None:
    """Return PyPI's uWSGI for this Python if it has been built before."""
    return current() if cache.is_made(_name(Path(sys.executable))) else None


def _from_pypi(python: Path) -> Build:
    if not shutil.which("cc"):
        msg = f"uWSGI {UWSGI} cannot be built: there is no C compiler (cc)"
        raise Unavailable(msg)
    environment = cache.environment(_name(python), python, WHEELS, _build)
    return Build(environment / "bin" / "uwsgi", environment)


def _name(python: Path) -> str:
    tag = run(python, "-c", "import sys; print(sys.implementation.cache_tag)")
    return f"uwsgi-{UWSGI}-{tag.strip()}"


def _build(environment: Path) -> None:
    """Build uWSGI into the environment, with the greenlet engine."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    headers = run(environment / "bin" / "python", "-c", code).strip()
    env = {"CFLAGS": f"-I{headers}", "UWSGI_EMBED_PLUGINS": "greenlet"}
    options = ["--no-cache-dir", "--no-binary=uwsgi", f"uwsgi=={UWSGI}"]
    cache.install(environment, *options, env=env)


if __name__ == "__main__":
    print(current().program)
