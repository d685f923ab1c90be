"""The WSGI application: each request makes a query on an open connection.

The environment variable WAY names the way to wait, DSN the database.
"""

import collections
import importlib
import os
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote_plus

import psycopg2
from ways import WAYS

if patch := WAYS[os.environ["WAY"]].patch:
    importlib.import_module(patch).patch_psycopg()

idle: collections.deque[Any] = collections.deque()


def connect() -> Any:  # noqa: ANN401
    """Open a connection."""
    conn = psycopg2.connect(os.environ["DSN"])
    conn.autocommit = True
    return conn


def open_connections(count: str) -> str:
    """Open *count* connections, one after the other, and keep them."""
    idle.extend(connect() for _ in range(int(count)))
    return count


def query(sql: str) -> str:
    """Return the answer to a query."""
    conn = idle.pop() if idle else connect()
    cursor = conn.cursor()
    cursor.execute(sql)
    answer = str(cursor.fetchone())
    idle.append(conn)
    return answer


ANSWERS = {"/open": open_connections, "/query": query}


def app(
    environ: dict[str, Any], start_response: Callable[..., object]
) -> Iterable[bytes]:
    """Answer ``/open?COUNT`` and ``/query?SQL``."""
    argument = unquote_plus(environ["QUERY_STRING"])
    body = ANSWERS[environ["PATH_INFO"]](argument).encode()
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]
