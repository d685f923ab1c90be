"""A Celery application with nothing green in it: plain, blocking psycopg2.

A worker that runs a hundred of its tasks at once::

    celery -A celery_app worker -P gevent -c 100 -l info -I psycogreen.integrations.celery
    celery -A celery_app call celery_app.double --args '[21]'

The environment variable DSN says where the database is, REDIS_URL where Redis is.
Without them libpq's own environment does, and a Redis on this machine.
"""

import os

import psycopg2
from celery import Celery
from sqlalchemy import create_engine, text

url = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
app = Celery("celery_app", broker=url, backend=url)

engine = create_engine(
    "postgresql+psycopg2://",
    creator=lambda: psycopg2.connect(os.environ.get("DSN", "")),
    pool_size=100,
    max_overflow=0,
)


@app.task
def double(n: int) -> int:
    """Let PostgreSQL take its time to multiply."""
    query = text("select 2 * :n, pg_sleep(0.2)")
    with engine.connect() as connection:
        return int(connection.execute(query, {"n": n}).scalar_one())
