"""An application that answers in a native thread, beside gevent's loop."""

import gevent
from check_app import app as answer


def app(environ, start_response):
    """Let a thread of the hub's pool do it."""
    return gevent.get_hub().threadpool.apply(answer, (environ, start_response))
