"""Flask-SQLAlchemy with nothing green in it, and a pool that fits a green worker.

Run it, and ask it::

    gunicorn -k gevent -c python:psycogreen.integrations.gunicorn_conf sqlalchemy_app:app
    curl http://127.0.0.1:8000/sleep/1

DATABASE_URL names the database; without it libpq's own environment does.
"""

import os

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ.get(
    "DATABASE_URL", "postgresql+psycopg2://"
)
app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {
    "pool_size": 20,  # connections of each worker
    "max_overflow": 0,  # no connection beyond these
    "pool_timeout": 10,  # seconds that a request waits for one; then it fails
}
db = SQLAlchemy(app)


@app.get("/sleep/<int:seconds>")
@app.get("/sleep/<float:seconds>")
def sleep(seconds: float) -> dict[str, float]:
    """Let PostgreSQL take its time."""
    db.session.execute(text("select pg_sleep(:seconds)"), {"seconds": seconds})
    return {"slept": seconds}
