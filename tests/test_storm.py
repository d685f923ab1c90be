"""Everything at once that has ended the waits of a loop before.

Under eventlet alone: gevent's own sleep() loses its timer if a destructor waits between
the start of the timer and the switch to the hub, so that `storm` with gevent does not
always end. ``python tests/storm.py gevent-libev 60`` tries it nevertheless.
"""

import pytest
from conftest import TESTS


@pytest.mark.parametrize("backend", ["eventlet-epolls", "eventlet-pure"])
def test_storm(python, backend):
    """No wait is lost, no answer goes astray, and nothing is left."""
    python(TESTS / "storm.py", backend, "2")
