"""No fault makes an operation hang or leak."""

import os
import random

import pytest
import tls
from conftest import environment
from faults.chaos import SECONDS_VARIABLE, SEED_VARIABLE
from faults.scripts import CHAOS, SCRIPTS

BACKENDS = ["gevent-libev", "eventlet-epolls"]


def needs_tls(fault):
    """Return whether the fault is one of an encrypted connection."""
    return fault.endswith("TLS")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fault", [fault for fault in SCRIPTS if fault != CHAOS])
def test_fault(lab, backend, fault):
    """A fault at any point of an operation violates no guarantee of docs/faults.rst."""
    if needs_tls(fault) and not lab.root:
        pytest.skip(tls.SKIPPED)
    report = lab.run(backend, fault, environment(lab.server))
    assert not report["violations"]
    # Nothing waits when a connection is closed; everything else has such points.
    assert report["points"] or fault.endswith("close")


@pytest.mark.full
@pytest.mark.parametrize("backend", BACKENDS)
def test_chaos(lab, backend, capsys):
    """A minute of random kills and timeouts mixes up no answers and leaves nothing."""
    seed = os.environ.get(SEED_VARIABLE) or str(random.randrange(10**9))
    seconds = os.environ.get(SECONDS_VARIABLE, "60")
    chaos = {SEED_VARIABLE: seed, SECONDS_VARIABLE: seconds}
    with capsys.disabled():
        print(f"\n{backend}: {seconds} s of chaos, {SEED_VARIABLE}={seed}", flush=True)
    report = lab.run(backend, CHAOS, {**environment(lab.server), **chaos})
    with capsys.disabled():
        print(f"{backend}: {report['points']} answers, {report['violations']}")
    assert not report["violations"]
    assert report["points"] > 1000
