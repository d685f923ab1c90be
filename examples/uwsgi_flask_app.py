"""The Flask application, made fit for uWSGI's greenlet and uGreen.

They share one native thread among all requests, and no lock knows that. SQLAlchemy
holds one while it gets to know the server, with queries, on its first connection:
a second request that wants one meanwhile would stop the worker for good. So that
first connection is made here, before there are requests, in each worker: uWSGI's
option lazy-apps has the application imported there.
"""

from flask_app import app, engine

__all__ = ["app"]

engine.connect().close()
