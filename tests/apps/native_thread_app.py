"""An application that answers in a native thread, beside gevent's loop."""

import gevent
from check_app import app as answer


def app(environ, start_response):
    """Answer from a thread of the hub's pool."""
    return gevent.get_hub().threadpool.apply(answer, (environ, start_response))
