"""``make check-instructions``: what is compared where, and what fails."""

import json

import pytest
from conftest import ROOT


@pytest.fixture
def instructions(monkeypatch):
    """The program, which measures what `counts` has: the recorded figures at first."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import instructions

    record = json.loads(instructions.RECORD.read_text())
    instructions.counts = dict(record["instructions"])
    monkeypatch.setattr(instructions, "environment", lambda: record["environment"])
    monkeypatch.setattr(instructions, "fetch_former", lambda: None)
    monkeypatch.setattr(
        instructions, "measure", lambda way, greenlets, dsn: instructions.counts[way]
    )
    return instructions


@pytest.mark.parametrize(("factor", "status"), [(1, 0), (1.04, 0), (1.06, 1)])
def test_same_environment(instructions, factor, status):
    """A query may cost 5 % more than recorded."""
    instructions.counts["gevent"] *= factor
    assert instructions.check("") == status


@pytest.mark.parametrize(("factor", "status"), [(1, 0), (1.3, 0), (1.4, 1)])
def test_other_processor(instructions, monkeypatch, factor, status):
    """On another processor figures are compared in proportion to psycogreen 1.0.2."""
    here = {**instructions.environment(), "processor": "another"}
    monkeypatch.setattr(instructions, "environment", lambda: here)
    counts = {way: count * 0.7 for way, count in instructions.counts.items()}
    instructions.counts = counts
    counts["eventlet"] *= factor
    assert instructions.check("") == status


def test_without_valgrind(instructions, monkeypatch, capsys):
    """Without valgrind the check fails and names what to install."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sys.argv", ["instructions.py", "--check"])
    assert instructions.main() == 1
    assert "valgrind is missing, apt-get install it" in capsys.readouterr().out
