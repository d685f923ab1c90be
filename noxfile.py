"""Run the tests with the oldest and the newest libraries, on every Python found.

``make test-matrix`` runs all of it, ``.venv/bin/nox -l`` lists it, and
``.venv/bin/nox -s "tests-3.13(oldest)" -- tests/test_contract.py`` runs a part.
"""

import re
import sys
import tomllib
from pathlib import Path

import nox

sys.path.insert(0, "tools")
import pythons

# The test modules whose results may depend on a library's version.
TESTS = [
    f"tests/test_{name}.py"
    for name in (
        "contract",
        "install",
        "requirements",
        "gunicorn",
        "plugin",
        "check",
        "celery",
        "metrics",
    )
]

# As in `make test`.
PARALLEL = ["-n", "8"]

# The oldest psycopg2-binary with a wheel for each Python. (psycopg2 is not among the
# dependencies in pyproject.toml.)
OLDEST_PSYCOPG2 = {
    "3.11": "2.9.5",
    "3.12": "2.9.9",
    "3.13": "2.9.10",
    "3.14": "2.9.11",
    "3.15": "2.9.13",
}

# The oldest versions that run on a Python, if they are newer than the declared minimum.
OLDEST_ON = {
    "3.13": {"eventlet": "0.38.0"},
    "3.14": {"eventlet": "0.38.0", "gevent": "25.9.1"},
    "3.15": {"eventlet": "0.38.0", "gevent": "26.9.0"},
}

nox.options.error_on_missing_interpreters = False


def oldest(version: str) -> list[str]:
    """Return the declared minimums of the extras, as exact versions."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    declared = [
        line for lines in project["optional-dependencies"].values() for line in lines
    ]
    minimums = dict(
        re.findall(r"^([\w-]+)>=([\d.]+)$", "\n".join(declared), re.MULTILINE)
    )
    libraries = ("gevent", "eventlet", "gunicorn", "celery", "prometheus-client")
    exact = {name: minimums[name] for name in libraries} | OLDEST_ON.get(version, {})
    exact["psycopg2-binary"] = OLDEST_PSYCOPG2[version]
    return [f"{name}=={number}" for name, number in exact.items()]


def install(session: nox.Session, *libraries: str) -> None:
    """Install the package, what its tests need, and *libraries*."""
    session.install("pip>=25.1")  # supports dependency groups
    session.install(".", "--group", "test", *libraries)


def tests(session: nox.Session, version: str, libraries: list[str]) -> None:
    """Install the package with what its tests need, and run the tests."""
    install(session, *libraries)
    session.run("pytest", *PARALLEL, *(session.posargs or TESTS))


for version in pythons.VERSIONS:
    interpreter = str(pythons.find(version) or version)

    @nox.session(python=interpreter, name=f"tests-{version}(oldest)")
    def _oldest(session: nox.Session, version: str = version) -> None:
        tests(session, version, oldest(version))

    @nox.session(python=interpreter, name=f"tests-{version}(newest)")
    def _newest(session: nox.Session, version: str = version) -> None:
        tests(session, version, [])


# Django's long-term releases and the newest one, each on a Python that it supports.
DJANGOS = {"4.2": "3.11", "5.2": "3.13", "6.0": "3.13", "6.1": "3.13"}
DJANGO_TESTS = [
    "tests/test_pool.py",
    "tests/test_django.py",
    "tests/test_django_load.py",
]

for release, version in DJANGOS.items():

    @nox.session(
        python=str(pythons.find(version) or version),
        name=f"django-{release}",
        tags=["django"],
    )
    def _django(session: nox.Session, release: str = release) -> None:
        install(session, f"django=={release}.*")
        session.run("pytest", *(session.posargs or DJANGO_TESTS))
