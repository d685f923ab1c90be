"""Connections that several greenlets share work as with several threads."""

import json
import os
import random

import pytest
from conftest import TESTS, environment
from sharing import table

BACKENDS = ["gevent-libev", "eventlet-epolls", "gevent-pure"]
STORM = TESTS / "sharing" / "storm.py"
ENDED = (
    *("_ask", "_commit", "_roll_back", "_close", "_copy_out", "_copy_in"),
    *("_large_object", "kills", "timeouts", "closed"),
)


@pytest.fixture(scope="module")
def outcomes(server):
    """The result of each operation, in threads and in greenlets."""
    return table.outcomes({**os.environ, **environment(server)})


def test_as_in_threads(outcomes):
    """Operations during another greenlet's query have the same results as in threads."""
    threads = outcomes["threads"]
    assert len(threads) >= 25
    for how in table.HOW:
        assert outcomes[how] == threads


def test_table(outcomes):
    """The table in docs/faults.rst has the current results."""
    assert table.TABLE.read_text() == table.text(outcomes), "run: make sharing-table"


def go_through_storm(python, backend, seconds):
    """Return what was done in a storm; check that nothing was wrong."""
    seed = random.randrange(10**9)
    output = python(STORM, backend, str(seconds), str(seed), timeout=seconds + 200)
    # psycopg2's destructor of a large object prints the error of a lost connection.
    [line] = [line for line in output.splitlines() if line.startswith("{")]
    report = json.loads(line)
    assert not report["wrong"], (seed, report)
    return report["counts"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_storm(python, backend):
    """A storm of greenlets on shared connections mixes up no answers, and leaves nothing."""
    assert go_through_storm(python, backend, 3)["_ask"] > 10


@pytest.mark.full
@pytest.mark.parametrize("backend", BACKENDS)
def test_long_storm(python, backend):
    """A storm of a minute on shared connections mixes up no answers, and leaves nothing."""
    counts = go_through_storm(python, backend, 60)
    missing = {name for name in ENDED if not counts.get(name)}
    # See the storm: Python cannot replace the destructor of large objects.
    assert missing <= ({"_large_object"} if backend == "gevent-pure" else set()), counts
