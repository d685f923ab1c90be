"""A Celery application with a task that makes a long query."""

import os

import psycopg2
from celery_app import app

__all__ = ["app"]


@app.task
def sleep_long() -> None:
    """Wait much longer than any test."""
    connection = psycopg2.connect(os.environ["DSN"], application_name="sleep_long")
    connection.cursor().execute("select pg_sleep(60) /* a task */")
