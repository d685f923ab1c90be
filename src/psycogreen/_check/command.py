"""The command line: ``python -m psycogreen`` and ``python -m psycogreen check``."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Self

import psycopg2

from psycogreen import _install
from psycogreen._check import overview, report
from psycogreen._check.checking import CheckReport, check
from psycogreen._check.postgres import postgres
from psycogreen._check.tasks import LOOPS, loop

COOPERATIVE, BLOCKING, NOT_CHECKED = 0, 1, 2
"""The exit statuses of ``check``."""


class CannotCheck(Exception):
    """There is nothing to check, or nothing to check it with."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with *arguments*, ``sys.argv``'s if ``None``; return its status."""
    given = _parser().parse_args(arguments)
    if given.command != "check":
        print("\n".join(overview.lines()))
        return 0
    # Ctrl-C just ends it: no hub, and no query, is to make something of it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        checked = _run_check(given)
    except (CannotCheck, ImportError, ValueError, RuntimeError, psycopg2.Error) as ex:
        print("psycogreen: cannot check:", _one_line(ex), file=sys.stderr)
        return NOT_CHECKED
    if given.json:
        print(json.dumps(report.as_dict(checked), indent=2))
    else:
        print("\n".join(report.lines(checked, colours=sys.stdout.isatty())))
    return COOPERATIVE if checked.cooperative else BLOCKING


def _one_line(error: Exception) -> str:
    """Return what *error* says; libpq's messages have several lines."""
    lines = (" ".join(line.split()) for line in str(error).splitlines())
    return "; ".join(filter(None, lines))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m psycogreen",
        description="Without a command: the versions of psycopg2 and of what it waits "
        "with, and what is installed in them.",
    )
    version = f"psycogreen {overview.own_version()}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", metavar="check")
    command = commands.add_parser(
        "check",
        help="try out whether psycopg2 lets others run while it waits",
        description="Patch as an application would, run queries at once against "
        "PostgreSQL, and watch the loop meanwhile. The exit status is 0 if it is "
        "cooperative, 1 if it is BLOCKING, 2 if it could not be checked.",
    )
    _add_options(command)
    return parser


def _add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "dsn",
        nargs="?",
        default="",
        metavar="DSN",
        help="the database: libpq's words or a URL (default: libpq's own, from PGHOST "
        "and so on)",
    )
    command.add_argument(
        "--embedded",
        action="store_true",
        help="use a throw-away PostgreSQL server of its own, instead of DSN",
    )
    command.add_argument(
        "--framework",
        choices=sorted(LOOPS, reverse=True),
        help="what to wait with (default: gevent if it is installed, else eventlet)",
    )
    command.add_argument(
        "--app",
        metavar="MODULE",
        help="import MODULE, which patches as it does for the application, instead of "
        "patching here",
    )
    command.add_argument(
        "--queries",
        type=_positive(int),
        default=10,
        metavar="N",
        help="how many at once (default: %(default)s)",
    )
    command.add_argument(
        "--seconds",
        type=_positive(float),
        default=0.5,
        metavar="S",
        help="how long each query waits in PostgreSQL (default: %(default)s)",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")


def _positive(number: type[int | float]) -> Callable[[str], float]:
    """Return a type of number for argparse: above zero."""

    def positive(text: str) -> float:
        value = number(text)
        if not 0 < value < math.inf:
            raise ValueError(text)
        return value

    positive.__name__ = f"positive {number.__name__}"  # for argparse's message
    return positive


def _run_check(given: argparse.Namespace) -> CheckReport:
    if given.embedded and given.dsn:
        msg = "give either DSN or --embedded"
        raise CannotCheck(msg)
    framework = given.framework
    if given.app:
        _import_app(given.app)
    else:
        framework = framework or _installed_framework()
        loop(framework).monkey_patch()
        _install.patch_psycopg(framework)
    with _server(given) as dsn, _Progress() as progress:
        return check(
            dsn,
            framework=framework,
            queries=given.queries,
            seconds=given.seconds,
            say=progress.say,
        )


def _installed_framework() -> str:
    for name in LOOPS:
        if find_spec(name):
            return name
    msg = "no framework is installed: pip install gevent (or eventlet)"
    raise CannotCheck(msg)


def _import_app(name: str) -> None:
    """Import the module; the name of an object in it, ``module:app``, is let be."""
    try:
        import_module(name.partition(":")[0])
    except (Exception, SystemExit) as ex:
        msg = f"--app {name!r} cannot be imported: {type(ex).__name__}: {ex}"
        raise CannotCheck(msg) from ex


@contextlib.contextmanager
def _server(given: argparse.Namespace) -> Iterator[str]:
    if not given.embedded:
        yield given.dsn
        return
    with postgres(given.queries) as server:
        # By its name, so that there is one to resolve.
        yield server.dsn.replace(server.host, "localhost")


class _Progress:
    """Tells the steps on standard error: on a terminal each in the place of the last."""

    def __enter__(self) -> Self:
        self._live = sys.stderr.isatty()
        return self

    def __exit__(self, *ex: object) -> None:
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def say(self, step: str) -> None:
        """Tell a step that begins."""
        if self._live:
            print(f"\r\x1b[K{step} ...", end="", file=sys.stderr, flush=True)
        else:
            print(f"psycogreen: {step}", file=sys.stderr, flush=True)
