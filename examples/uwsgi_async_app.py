"""psycopg2's own asynchronous connections under uWSGI, waited for explicitly.

Run it, and ask it::

    uwsgi --async 50 --greenlet --module uwsgi_async_app \
        --http-socket 127.0.0.1:8000 --die-on-term
    curl http://127.0.0.1:8000/1

Nothing is installed: only what asks for it lets other requests run.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg2
from psycopg2.extensions import connection

from psycogreen.uwsgi import uwsgi_wait_callback


@contextmanager
def connect() -> Iterator[connection]:
    """Open an asynchronous connection, and close it."""
    conn = psycopg2.connect(os.environ.get("DSN", ""), async_=True)
    try:
        uwsgi_wait_callback(conn)  # until it is open
        yield conn
    finally:
        conn.close()


def application(
    environ: dict[str, str], start_response: Callable[..., object]
) -> list[bytes]:
    """Sleep in PostgreSQL for as many seconds as the path says."""
    seconds = float(environ["PATH_INFO"].strip("/"))
    with connect() as conn:
        cursor = conn.cursor()
        cursor.execute("select pg_sleep(%s)", (seconds,))
        uwsgi_wait_callback(conn)  # until the result is there
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"slept for {seconds} seconds\n".encode()]
