"""A Flask application with nothing green in it: plain, blocking psycopg2.

Run it in a worker that every query blocks, and in two green workers::

    gunicorn -k gevent flask_app:app
    gunicorn -k gevent -c python:psycogreen.integrations.gunicorn_conf flask_app:app
    gunicorn -k psycogreen.integrations.eventlet_worker.EventletWorker flask_app:app
    curl http://127.0.0.1:8000/sleep/1

The environment variable DSN says where the database is, in libpq's words. Without it
libpq's own environment does (PGHOST, PGDATABASE and so on).
"""

import os
import time

import psycopg2
from flask import Flask
from sqlalchemy import create_engine, text

app = Flask(__name__)

# Connections are opened on first use, in the worker: none is shared by a fork.
# A request that finds all of them busy waits for one.
engine = create_engine(
    "postgresql+psycopg2://",
    creator=lambda: psycopg2.connect(os.environ.get("DSN", "")),
    pool_size=50,
    max_overflow=0,
)


@app.get("/sleep/<int:seconds>")
@app.get("/sleep/<float:seconds>")
def sleep(seconds: float) -> dict[str, float]:
    """Let PostgreSQL take its time."""
    with engine.connect() as connection:
        connection.execute(text("select pg_sleep(:seconds)"), {"seconds": seconds})
    return {"slept": seconds}


@app.post("/setup")
def setup() -> dict[str, int]:
    """Make the table with the one row that everybody wants."""
    with engine.begin() as connection:
        connection.execute(text("create table if not exists hits (id int, n int)"))
        connection.execute(text("truncate hits"))
        connection.execute(text("insert into hits values (1, 0)"))
    return {"n": 0}


@app.post("/hit")
def hit() -> dict[str, int]:
    """Count one up, which waits for the transaction that has locked the row."""
    with engine.begin() as connection:
        update = text("update hits set n = n + 1 where id = 1 returning n")
        return {"n": connection.execute(update).scalar_one()}


@app.post("/hold/<int:seconds>")
@app.post("/hold/<float:seconds>")
def hold(seconds: float) -> dict[str, float]:
    """Keep the row locked while something else, outside PostgreSQL, takes its time."""
    with engine.begin() as connection:
        connection.execute(text("select n from hits where id = 1 for update"))
        time.sleep(seconds)
    return {"held": seconds}
