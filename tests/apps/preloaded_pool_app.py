"""An application that makes a pool of psycopg2's where --preload imports it."""

import os

from psycopg2.pool import ThreadedConnectionPool

pool = ThreadedConnectionPool(0, 50, os.environ["DSN"])


def app(environ, start_response):
    """Answer after a query over one of the pool's connections."""
    conn = pool.getconn()
    conn.cursor().execute("select pg_sleep(0.1)")
    pool.putconn(conn)
    start_response("200 OK", [])
    return [b"done"]
