"""Count the instructions of a query, and of a connection, with callgrind.

Usage: instructions.py [--check | --record] [WAY[:GREENLETS] ...]

Connections are counted only with --record and --check: one greenlet connects over a unix
socket and closes, repeatedly.

Unlike time, instructions hardly depend on other load on the machine. They depend on how
many answers have arrived each time that the loop looks: with more of them, the loop's
share is smaller. Under valgrind the process is slow, so that most answers have arrived. It
is measured several times, and the median counts.

--check compares with the figures in instructions.json and fails if one is exceeded by more
than 5 %. These are valid for the recorded Python version and processor. On any other,
--check says so and compares with psycogreen 1.0.2 on the same machine: the ratio to it may
be 35 % higher than recorded. If the versions of libraries differ, it says so and compares
nevertheless.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ways import ROOT, WAYS, fetch_former, fetch_others

from psycogreen._check.postgres import Server, postgres

RECORD = Path(__file__).with_suffix(".json")
TOLERANCE = 0.05
TOLERANCE_ELSEWHERE = 0.35
# The checked ways, each with the way to compare with on another processor or Python.
GUARDED = {
    "gevent": "gevent-1.0.2",
    "gevent-pure": "gevent-1.0.2",
    "eventlet": "eventlet-1.0.2",
    "eventlet-pure": "eventlet-1.0.2",
}
GREENLETS = 10
REPETITIONS = 5
RETRIES = 2
LIBRARIES = ["gevent", "eventlet", "greenlet", "psycopg2-binary"]


class Failed(Exception):
    """A measured process has failed; the message is its output."""


@dataclass(frozen=True)
class Subject:
    """A subject of the record: a query or a connection."""

    what: str
    key: str
    """Its name in the record."""
    program: str | None
    """The program that makes it; ``None`` is the way's own program."""
    greenlets: int
    least: int
    """The length of the shorter stretch."""

    def dsn(self, server: Server) -> str:
        """Return where it is measured."""
        return server.dsn if self.program is None else server.unix_dsn


QUERY = Subject("a query", "instructions", None, GREENLETS, 200)
CONNECTION = Subject("a connection", "connections", "connections.py", 1, 40)


def measure(
    way: str,
    greenlets: int,
    dsn: str,
    repetitions: int = REPETITIONS,
    subject: Subject = QUERY,
) -> float:
    """Return the instructions that one query, or other *subject*, costs in user space.

    Each repetition is of a short and of a long stretch, so that what does not grow
    with the queries, such as spawning the greenlets, cancels out.
    """
    short = max(subject.least, 4 * greenlets)
    long = 3 * short
    program = subject.program or WAYS[way].program
    stretches = [short, *[short, long] * repetitions]
    counts = _count(way, program, greenlets, stretches, dsn)
    pairs = zip(counts[1::2], counts[2::2], strict=True)
    return statistics.median((more - less) / (long - short) for less, more in pairs)


def _count(
    way: str, program: str, greenlets: int, stretches: list[int], dsn: str
) -> list[int]:
    """Return the instructions of each stretch."""
    # The same hashes each time, and so the same dictionaries.
    env = {**WAYS[way].variables(), "DSN": dsn, "PYTHONHASHSEED": "0"}
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "valgrind",
            "--tool=callgrind",
            "--dump-before=getppid*",
            f"--callgrind-out-file={folder}/out",
            # -P: use the installed package.
            *(sys.executable, str(ROOT / "benchmarks" / program), way),
            *map(str, [greenlets, *stretches]),
        ]
        result = subprocess.run(
            command, env=env, capture_output=True, text=True, check=False
        )
        if result.returncode:
            raise Failed(result.stdout + result.stderr)
        # The first count is what came before the first stretch.
        return [_total(folder, n) for n in range(2, len(stretches) + 2)]


def _total(folder: str, number: int) -> int:
    text = Path(folder, f"out.{number}").read_text()
    return int(re.search(r"^(?:totals|summary): (\d+)", text, re.MULTILINE)[1])


def environment() -> dict[str, str]:
    """Return the versions and the processor that the figures depend on."""
    found = {"python": platform.python_version(), "processor": platform.machine()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "none"
    return found


def comparable(recorded: dict[str, str]) -> bool:
    """Return whether figures recorded in that environment are valid for this one.

    Print the differences.
    """
    here = environment()
    differing = [name for name in here if here[name] != recorded.get(name)]
    for name in differing:
        print(f"recorded with {name} {recorded.get(name)}, here it is {here[name]}")
    same_python = (
        here["python"].rsplit(".", 1)[0] == recorded["python"].rsplit(".", 1)[0]
    )
    return same_python and "processor" not in differing


def check(server: Server) -> int:
    """Compare with the record; return the exit status."""
    record = json.loads(RECORD.read_text())
    here = comparable(record["environment"])
    if not here:
        print("so compared in proportion to psycogreen 1.0.2")
        fetch_former()
    exceeded = [
        _check(subject, record[subject.key], server, here=here)
        for subject in (QUERY, CONNECTION)
    ]
    return int(any(exceeded))


def _check(
    subject: Subject, recorded: dict[str, float], server: Server, *, here: bool
) -> bool:
    """Print how *subject* compares with the record; return whether one costs more."""
    tolerance = TOLERANCE if here else TOLERANCE_ELSEWHERE
    expected = {way: recorded[way] for way in GUARDED}
    if not here:
        yardsticks = set(GUARDED.values())
        former = {way: _measured(subject, way, server) for way in yardsticks}
        for way, yardstick in GUARDED.items():
            expected[way] *= former[yardstick] / recorded[yardstick]
    print(f"{subject.what}:")
    exceeded = False
    for way, count in expected.items():
        found = _least(subject, way, count * (1 + tolerance), server)
        more = found / count - 1
        print(f"{way:16} {found:9,.0f} expected {count:9,.0f} {more:+7.1%}")
        if more > tolerance:
            print(f"{subject.what} costs over {tolerance:.0%} more than expected")
            exceeded = True
    return exceeded


def _measured(subject: Subject, way: str, server: Server) -> float:
    return measure(way, subject.greenlets, subject.dsn(server), subject=subject)


def _least(subject: Subject, way: str, enough: float, server: Server) -> float:
    """Return the instructions of *subject*; measure again if they exceed *enough*.

    Load on the machine can only increase them, because fewer answers arrive together.
    """
    found = _measured(subject, way, server)
    for _ in range(RETRIES):
        if found > enough:
            found = min(found, _measured(subject, way, server))
    return found


def record(server: Server) -> None:
    """Record the figures of this environment."""
    fetch_former()
    wanted = [*GUARDED, *dict.fromkeys(GUARDED.values())]
    figures = {
        subject.key: {way: round(_measured(subject, way, server)) for way in wanted}
        for subject in (QUERY, CONNECTION)
    }
    text = json.dumps({"environment": environment(), **figures}, indent=2)
    RECORD.write_text(text + "\n")
    print(text)


def table(dsn: str, wanted: list[str]) -> None:
    """Print the figures of what is *wanted*."""
    for spec in wanted:
        way, _, greenlets = spec.partition(":")
        figure = measure(way, int(greenlets or GREENLETS), dsn)
        print(f"{way:16} {greenlets or GREENLETS:>4} {figure:9,.0f}", flush=True)


def main() -> int:
    """Run what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("wanted", nargs="*", metavar="WAY[:GREENLETS]")
    options = parser.parse_args()
    if not shutil.which("valgrind"):
        print("instructions cannot be counted: valgrind is missing, apt-get install it")
        return 1
    with postgres() as server:
        os.nice(
            5
        )  # the server gets a higher priority, so that all answers have arrived
        if options.check:
            return check(server)
        if options.record:
            record(server)
        else:
            fetch_others()
            table(
                server.dsn,
                options.wanted or [f"{w}:{n}" for w in WAYS for n in (1, 10, 50)],
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
