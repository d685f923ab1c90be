"""The Flask application of flask_app.py, which can tell whether its worker is green.

Run it, and ask it::

    gunicorn -k psycogreen.integrations.gevent_worker.GeventWorker check_app:app
    curl http://127.0.0.1:8000/check
"""

import os

from flask_app import app

import psycogreen

__all__ = ["app"]


@app.get("/check")
def check() -> dict[str, object]:
    """Try out, where requests are answered, whether psycopg2 lets others run."""
    report = psycogreen.check(os.environ.get("DSN", ""), queries=5, seconds=0.3)
    return {
        "cooperative": report.cooperative,
        "problems": report.problems,
        "longest_stall": round(report.longest_stall or 0, 3),  # seconds
    }
