"""The comparisons and failures of ``make check-instructions``."""

import json

import pytest
from conftest import ROOT

from psycogreen._check.postgres import Server


@pytest.fixture
def instructions(monkeypatch):
    """The program, which measures what *counts* has: the recorded figures at first."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import instructions

    record = json.loads(instructions.RECORD.read_text())
    instructions.counts = {key: record[key] for key in ("instructions", "connections")}
    monkeypatch.setattr(instructions, "environment", lambda: record["environment"])
    monkeypatch.setattr(instructions, "fetch_former", lambda: None)
    monkeypatch.setattr(
        instructions,
        "measure",
        lambda way, greenlets, dsn, subject: instructions.counts[subject.key][way],
    )
    return instructions


SERVER = Server(host="", port=0, socket_directory="", data_directory="", pid=0)

SUBJECTS = pytest.mark.parametrize("subject", ["instructions", "connections"])


@SUBJECTS
@pytest.mark.parametrize(("factor", "status"), [(1, 0), (1.04, 0), (1.06, 1)])
def test_same_environment(instructions, subject, factor, status):
    """A query or a connection may cost 5 % more than recorded."""
    instructions.counts[subject]["gevent"] *= factor
    assert instructions.check(SERVER) == status


@SUBJECTS
@pytest.mark.parametrize(("factor", "status"), [(1, 0), (1.3, 0), (1.4, 1)])
def test_other_processor(instructions, monkeypatch, subject, factor, status):
    """On another processor figures are compared in proportion to psycogreen 1.0.2."""
    here = {**instructions.environment(), "processor": "another"}
    monkeypatch.setattr(instructions, "environment", lambda: here)
    instructions.counts = {
        key: {way: count * 0.7 for way, count in counts.items()}
        for key, counts in instructions.counts.items()
    }
    instructions.counts[subject]["eventlet"] *= factor
    assert instructions.check(SERVER) == status


def test_without_valgrind(instructions, monkeypatch, capsys):
    """Without valgrind the check fails and names what to install."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sys.argv", ["instructions.py", "--check"])
    assert instructions.main() == 1
    assert "valgrind is missing, apt-get install it" in capsys.readouterr().out
