"""The Flask application of flask_app.py, with health checks for a supervisor.

Run it, and ask it::

    gunicorn -k gevent -c python:psycogreen.integrations.gunicorn_conf health_app:app
    curl http://127.0.0.1:8000/ready
"""

import os

import psycopg2
from flask_app import app

__all__ = ["app"]


@app.get("/live")
def live() -> str:
    """Answer as long as the worker's loop runs: if not, the worker is to be replaced."""
    return "alive\n"


@app.get("/ready")
def ready() -> tuple[str, int]:
    """Answer 200 if PostgreSQL can be reached: if not, send requests elsewhere."""
    try:
        # A connection of its own: an exhausted pool does not make a worker unready.
        # Seconds, for each of the hosts.
        psycopg2.connect(os.environ.get("DSN", ""), connect_timeout=2).close()
    except psycopg2.OperationalError as ex:
        return f"not ready: {ex}", 503
    return "ready\n", 200
