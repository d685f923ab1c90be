"""The command line: ``python -m psycogreen`` and ``python -m psycogreen check``."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Self

import psycopg2

from psycogreen import _install
from psycogreen._check import overview, report
from psycogreen._check.checking import CheckReport, check
from psycogreen._check.launching import NoReport, check_worker
from psycogreen._check.postgres import postgres
from psycogreen._check.probe import Job
from psycogreen._check.tasks import LOOPS, loop
from psycogreen._interface.dsn import for_libpq
from psycogreen._wait import unpatched

COOPERATIVE, BLOCKING, NOT_CHECKED = 0, 1, 2
"""The exit statuses of ``check``."""

_APP_LIMIT = 60  # seconds for the import of --app's module

_OF_A_WORKER = "python -m psycogreen check DSN -- gunicorn -k gevent app:app"


class CannotCheck(Exception):
    """The check cannot run; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with *arguments*, ``sys.argv``'s if ``None``; return its status."""
    own, server = _divided(sys.argv[1:] if arguments is None else arguments)
    given = _parser().parse_args(own)
    if given.command == "check":
        given.dsn = " ".join(given.dsn)
        return _check(given, server)
    _print("\n".join(overview.lines()))
    return 0


def _print(text: str) -> None:
    """Print *text*; a reader that stops reading, such as ``head -1``, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # The interpreter flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _divided(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str] | None]:
    """Return the arguments before ``--``, and the server's command after it."""
    if "--" not in arguments:
        return arguments, None
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _check(given: argparse.Namespace, server: Sequence[str] | None) -> int:
    try:
        if server is None:
            cooperative, text = _check_here(given)
        else:
            cooperative, text = _check_server(given, server)
    except NoReport as ex:
        return _say_why_not(ex, ex.log)
    except (CannotCheck, ImportError, ValueError, RuntimeError, psycopg2.Error) as ex:
        return _say_why_not(ex)
    _print(text)
    return COOPERATIVE if cooperative else BLOCKING


def _say_why_not(error: Exception, log: str = "") -> int:
    print("psycogreen: cannot check:", _one_line(error), file=sys.stderr)
    if log:
        print("The server's last lines:", file=sys.stderr)
        print(textwrap.indent(log, "  "), file=sys.stderr)
    return NOT_CHECKED


def _one_line(error: Exception) -> str:
    """Return the text of *error* in one line; libpq's messages have several."""
    lines = (" ".join(line.split()) for line in str(error).splitlines())
    return "; ".join(filter(None, lines))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m psycogreen",
        description="Without a command, show the versions of psycopg2, the frameworks "
        "and the servers, and which wait callback is installed.",
    )
    version = f"psycogreen {overview.own_version()}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", metavar="check")
    command = commands.add_parser(
        "check",
        help="test with real queries whether psycopg2 waits cooperatively",
        usage="%(prog)s [options] [DSN] [-- SERVER'S COMMAND]",
        description="Run concurrent queries against PostgreSQL and measure how long "
        "the loop stands still. With a command of gunicorn, uWSGI or Celery after --, "
        "start that server, check one of its workers, and stop it. Without one, check "
        "this process, patched as an application would patch it. The exit status is 0 "
        "if psycopg2 is cooperative, 1 if it is BLOCKING, 2 if it cannot be checked.",
    )
    _add_options(command)
    return parser


def _add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "dsn",
        nargs="*",
        metavar="DSN",
        help="the database: libpq's keywords, quoted or not, or a URL (default: "
        "libpq's defaults, such as PGHOST)",
    )
    command.add_argument(
        "--embedded",
        action="store_true",
        help="start a throw-away PostgreSQL server and use it instead of DSN",
    )
    command.add_argument(
        "--framework",
        choices=sorted(LOOPS, reverse=True),
        help="the framework to patch for (default: gevent if installed, else eventlet)",
    )
    command.add_argument(
        "--app",
        metavar="MODULE",
        help="import MODULE, the application's module that patches, instead of "
        "patching here",
    )
    command.add_argument(
        "--queries",
        type=_positive(int),
        default=10,
        metavar="N",
        help="how many queries run at the same time (default: %(default)s)",
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
    """Return a type for argparse that accepts numbers above zero."""

    def positive(text: str) -> float:
        value = number(text)
        if not 0 < value < math.inf:
            raise ValueError(text)
        return value

    positive.__name__ = f"positive {number.__name__}"  # for argparse's message
    return positive


def _check_here(given: argparse.Namespace) -> tuple[bool, str]:
    """Check this process; return whether it is cooperative, and what to print."""
    # Ctrl-C ends the process instead of raising an exception in a hub or a query.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    unpatched.leave_to_others()
    checked = _run_check(given)
    if given.json:
        return checked.cooperative, _as_json(report.as_dict(checked))
    lines = list(report.lines(checked, colours=sys.stdout.isatty()))
    if given.app and not checked.cooperative:
        lines.append("If a server patches this application, check the server's worker:")
        lines.append(f"  {_OF_A_WORKER}")
    return checked.cooperative, "\n".join(lines)


def _as_json(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=2)


def _check_server(given: argparse.Namespace, server: Sequence[str]) -> tuple[bool, str]:
    """Check a worker of the server with that command, as `_check_here` does."""
    if not server:
        msg = f"no command after --, such as in: {_OF_A_WORKER}"
        raise CannotCheck(msg)
    if given.app or given.framework:
        msg = "with a server's command, give neither --app nor --framework"
        raise CannotCheck(msg)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit)
    with _server(given) as dsn, _Progress() as progress:
        job = Job(for_libpq(dsn), given.queries, given.seconds, sys.stdout.isatty())
        found = check_worker(server, job, progress.say)
    text = _as_json(found["report"]) if given.json else "\n".join(found["lines"])
    return found["cooperative"], text


def _exit(number: int, frame: object) -> None:
    """Raise `SystemExit` for a signal, so that the server is stopped too."""
    sys.exit(128 + number)


def _run_check(given: argparse.Namespace) -> CheckReport:
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
    """Import the module of ``module`` or ``module:app``, within `_APP_LIMIT`."""
    signal.signal(signal.SIGALRM, _give_up_import)
    signal.alarm(_APP_LIMIT)
    try:
        import_module(name.partition(":")[0])
    except (Exception, SystemExit) as ex:
        msg = f"--app {name!r} cannot be imported: {type(ex).__name__}: {ex}"
        raise CannotCheck(msg) from ex
    finally:
        signal.alarm(0)


def _give_up_import(sig: int, frame: object) -> None:
    error = CannotCheck(
        f"after {_APP_LIMIT} s the import of --app has not ended. Does the module serve? "
        f'Guard that with if __name__ == "__main__", or check a server: {_OF_A_WORKER}'
    )
    # The module's code, or the loop that it runs, would catch an exception.
    os._exit(_say_why_not(error))


@contextlib.contextmanager
def _server(given: argparse.Namespace) -> Iterator[str]:
    if given.embedded and given.dsn:
        msg = "give either DSN or --embedded"
        raise CannotCheck(msg)
    if not given.embedded:
        yield given.dsn
        return
    with postgres(given.queries) as server:
        # With a host name, so that the check resolves one.
        yield server.dsn.replace(server.host, "localhost")


class _Progress:
    """Prints the steps on standard error; on a terminal, each replaces the last one."""

    def __enter__(self) -> Self:
        self._live = sys.stderr.isatty()
        return self

    def __exit__(self, *ex: object) -> None:
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def say(self, step: str) -> None:
        """Print a step that begins."""
        if self._live:
            print(f"\r\x1b[K{step} ...", end="", file=sys.stderr, flush=True)
        else:
            print(f"psycogreen: {step}", file=sys.stderr, flush=True)
