"""Everything at once that has ended the waits of a loop before."""

import pytest
from conftest import TESTS

BACKENDS = ["gevent-libev", "gevent-pure", "eventlet-epolls", "eventlet-pure"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_short_storm(python, backend):
    """No wait is lost, no answer goes astray, and nothing is left."""
    python(TESTS / "storm.py", backend, "2")
