"""The benchmarks run, and the documentation shows the recorded results."""

import json
import os
import subprocess
import sys
from itertools import chain
from xml.etree import ElementTree

import pytest
from conftest import TESTS

ROOT = TESTS.parent
BENCHMARKS = ROOT / "benchmarks"

QUERIES = {"10", "50", "50, 127.0.0.1"}
LOADS = {"select 1, 50 clients", "select pg_sleep(0.1), 200 clients"}
COPIES = {
    "COPY out",
    "COPY in",
    "write a large object",
    "read it",
    "write it in pieces of 64 kB",
    "read it in pieces of 64 kB",
}
CASES = {
    "cpu": QUERIES,
    "rate": QUERIES,
    "connections": {"unix socket", "127.0.0.1", "localhost"},
    "slow name": {"longest stall, ms", "lookups for 100"},
    "rows": {"50 greenlets: CPU µs", "50 greenlets: queries a second"},
    "large": {"1 MB", "1 MB, CPU"},
    "copies": COPIES,
    "copies cpu": COPIES,
    "stalls": COPIES,
    "requests": LOADS,
    "request cpu": LOADS,
    "p99": LOADS,
    "django": {"requests a second", "CPU µs a request"},
    "sleepers": {
        "20 for 0.1 s each: seconds",
        "CPU µs a request",
        "kB a request",
        "MB in all",
    },
}
IN_THIS_PROCESS = {
    "gevent",
    "gevent-pure",
    "gevent-libuv",
    "gevent-1.0.2",
    "psycopg3",
    "eventlet",
    "eventlet-pure",
    "eventlet-asyncio",
    "eventlet-1.0.2",
    "eventlet-builtin",
    "threads",
    "asyncpg",
}
OURS = {"gevent", "gevent-pure", "eventlet", "eventlet-pure"}
COPYING = OURS | {"threads"}
CONNECTING = {
    "gevent",
    "gevent-1.0.2",
    "psycopg3",
    "eventlet",
    "eventlet-1.0.2",
    "threads",
    "asyncpg",
}
SERVED = {"gevent", "gevent-1.0.2", "threads"}
DJANGO = {
    "django-pool",
    "django-geventpool",
    "django-geventpool-all",
    "django-connection-pool",
    "django-kept",
    "django-fresh",
}
SLEEPING = {"gevent", "gevent-1.0.2"}
WAYS = {
    "cpu": IN_THIS_PROCESS,
    "rate": IN_THIS_PROCESS,
    "connections": CONNECTING,
    "slow name": OURS,
    "rows": IN_THIS_PROCESS,
    "large": IN_THIS_PROCESS,
    "copies": COPYING,
    "copies cpu": COPYING,
    "stalls": OURS,
    "requests": SERVED,
    "request cpu": SERVED,
    "p99": SERVED,
    "django": DJANGO,
    "sleepers": SLEEPING,
}

DRAW = f"""
import pathlib, sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import figures, picture, tables
found = figures.load(pathlib.Path(sys.argv[1]))
folder = pathlib.Path(sys.argv[2])
folder.mkdir()
for name, shown in ("summary", [tables.summary(found)]), ("table", tables.tables(found)):
    (folder / f"benchmarks-{{name}}.rst").write_text(tables.rst(shown), encoding="utf-8")
picture.draw(found, folder)
"""


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Return the folder that a short run of all benchmarks has filled."""
    folder = tmp_path_factory.mktemp("quick")
    result = subprocess.run(
        [sys.executable, str(BENCHMARKS), "--quick", str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tools")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return folder


@pytest.mark.full
def test_results(quick):
    """A run writes the figures of every measure and way, and the environment."""
    results = json.loads((quick / "results.json").read_text())
    assert {"date", "processor", "Python", "PostgreSQL", "gevent"} <= set(
        results["environment"]
    )
    samples = results["samples"]
    assert {measure: set(cases) for measure, cases in samples.items()} == CASES
    for measure, cases in samples.items():
        for ways in cases.values():
            assert set(ways) == WAYS[measure]
            # A tick of the CPU's clock is too long for some of so short a run.
            assert all(figure >= 0 for figure in chain(*ways.values()))
    assert all(figure > 0 for figure in chain(*samples["cpu"]["10"].values()))


@pytest.mark.full
def test_picture(quick):
    """The picture names the ways that it compares."""
    picture = (quick / "benchmarks.svg").read_text()
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    # The letters are drawn; a comment tells each text.
    for name in "psycogreen, gevent", "asyncpg on uvloop", "psycopg 3, gevent":
        assert f"<!-- {name} -->" in picture


def test_documentation_shows_the_results(python, tmp_path):
    """The documentation's tables are the results', and drawing is repeatable."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in first, second:
        python(DRAW, str(BENCHMARKS / "results.json"), str(folder))
    for table in "benchmarks-summary.rst", "benchmarks-table.rst":
        assert (first / table).read_text() == (ROOT / "docs" / table).read_text()
    pictures = sorted(first.glob("*.svg"))
    assert [picture.name for picture in pictures] == [
        "benchmarks-alone.svg",
        "benchmarks.svg",
    ]
    for picture in pictures:
        assert picture.read_bytes() == (second / picture.name).read_bytes()
