"""The tests on the newest Pythons, in Debian sid: ``make test-newest``.

``python tools/newest.py 3.15 tests/test_uwsgi.py -k ugreen`` runs a part of it: the
first argument may be a version, the others are pytest's.
"""

from __future__ import annotations

import sys

import debian


def test(version: str, arguments: list[str]) -> int:
    """Run the tests with that Python; return the exit status."""
    print(f"\n=== Python {version} in {debian.FOLDER}", flush=True)
    environment = f".venv-{version}"
    python = f"{environment}/bin/python"
    install = (python, "-m", "pip", "install", "--quiet")
    # As if the environment were activated: tests also run python3 and pip by name.
    path = f"{debian.PROJECT}/{environment}/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    steps = (
        (f"python{version}", "-m", "venv", environment),
        (*install, "--upgrade", "pip>=25.1"),  # it knows dependency groups
        (*install, ".", "--group", "test"),
        (*install, "--no-deps", "--force-reinstall", "."),
        (python, "-m", "pytest", *arguments),
    )
    runs = (debian.enter(*step, PATH=path) for step in steps)
    return next((status for status in runs if status), 0)


def main(arguments: list[str]) -> int:
    """Run the tests with each Python, or with the one that *arguments* name."""
    try:
        debian.prepare()
    except debian.Unavailable as ex:
        print(f"skipped: {ex}")
        return 0
    versions = debian.PYTHONS
    if arguments and arguments[0] in versions:
        versions = (arguments.pop(0),)
    return max(test(version, arguments) for version in versions)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
