"""Load rows by COPY, and store and serve files in large objects, in a gunicorn worker.

Run it with::

    gunicorn -k gevent -c python:psycogreen.integrations.gunicorn_conf copy_app:app
    seq 9 | sed 's/$/,name/' | curl --data-binary @- http://127.0.0.1:8000/rows
    curl http://127.0.0.1:8000/rows
    curl --data-binary @file http://127.0.0.1:8000/files
    curl http://127.0.0.1:8000/files/16384

The environment variable DSN says where the database is, in libpq's words. Without it
libpq's own environment does (PGHOST, PGDATABASE and so on).
"""

import os
from collections.abc import Iterator
from contextlib import closing

import psycopg2
from flask import Flask, Response, request

PORTION = 1_000_000  # bytes: a large object is read and written in large portions

app = Flask(__name__)


def connect() -> psycopg2.extensions.connection:
    """Open a connection."""
    return psycopg2.connect(os.environ.get("DSN", ""))


@app.post("/rows")
def load() -> dict[str, int]:
    """Copy the body of the request, as CSV, into a table while it is received."""
    with closing(connect()) as connection, connection:
        cursor = connection.cursor()
        cursor.execute("create table if not exists loaded (n int, name text)")
        cursor.copy_expert("copy loaded from stdin csv", request.stream)
        return {"rows": cursor.rowcount}


@app.get("/rows")
def dump() -> dict[str, int]:
    """Count what was loaded."""
    with closing(connect()) as connection:
        cursor = connection.cursor()
        cursor.execute("select count(*), sum(n) from loaded")
        rows, total = cursor.fetchone()
        return {"rows": rows, "total": total}


@app.post("/files")
def upload() -> dict[str, int]:
    """Keep the body of the request in a large object."""
    with closing(connect()) as connection, connection:
        file = connection.lobject(mode="wb")
        while data := request.stream.read(PORTION):
            file.write(data)
        return {"oid": file.oid}


@app.get("/files/<int:oid>")
def download(oid: int) -> Response:
    """Serve a large object, without all of it in memory."""

    def portions() -> Iterator[bytes]:
        with closing(connect()) as connection:
            file = connection.lobject(oid, "rb")
            while data := file.read(PORTION):
                yield data

    return Response(portions(), mimetype="application/octet-stream")
