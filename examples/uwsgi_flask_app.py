"""The Flask application, made fit for uWSGI's greenlet and uGreen.

Run it, and ask it::

    uwsgi --ini uwsgi-greenlet.ini --http-socket 127.0.0.1:8000
    curl http://127.0.0.1:8000/sleep/1

They share one native thread among all requests, and no lock knows that. SQLAlchemy
holds one while it gets to know the server, with queries, on its first connection:
a second request that wants one meanwhile would stop the worker for good. So that
first connection is made here, before there are requests, in each worker: uWSGI's
option lazy-apps has the application imported there.
"""

from flask_app import app, engine

__all__ = ["app"]

engine.connect().close()
