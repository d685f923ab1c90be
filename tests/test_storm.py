"""All events that have ended the waits of a loop before, at the same time."""

import pytest
from conftest import TESTS

BACKENDS = ["gevent-libev", "gevent-pure", "eventlet-epolls", "eventlet-pure"]


def storm(python, backend, seconds):
    """Run it, which fails if a wait is lost, an answer goes astray or a thing is left.

    It goes on for up to a minute longer if something has not happened by then, and
    waits two minutes at most until all has ended.
    """
    python(TESTS / "storm.py", backend, str(seconds), timeout=seconds + 240)


@pytest.mark.parametrize("backend", BACKENDS)
def test_storm(python, backend):
    """No wait is lost, no answer goes astray, and nothing is left."""
    storm(python, backend, 2)


@pytest.mark.full
@pytest.mark.parametrize("backend", BACKENDS)
def test_long_storm(python, backend):
    """In a storm of a minute no wait is lost, no answer goes astray, nothing is left."""
    storm(python, backend, 60)
