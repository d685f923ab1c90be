"""The demo's application for uWSGI, prepared as in examples/uwsgi_flask_app.py."""

from demo_app import app
from flask_app import engine

__all__ = ["app"]

engine.connect().close()
