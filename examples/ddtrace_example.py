"""Queries under gevent, traced by Datadog's ddtrace.

DD_TRACE_ENABLED=false python ddtrace_example.py
"""

from gevent import monkey

monkey.patch_all()

import ddtrace

ddtrace.patch(psycopg=True)

import psycogreen

psycogreen.patch_psycopg()

import gevent
import psycopg2


def query(n: int) -> str:
    """Run a query that takes its time; tell what kind of connection ran it."""
    connection = psycopg2.connect("")
    connection.cursor().execute("select %s, pg_sleep(0.2)", (n,))
    connection.close()
    return type(connection).__name__


jobs = [gevent.spawn(query, n) for n in range(10)]
gevent.joinall(jobs, raise_error=True)
print("connections:", *{job.value for job in jobs})
print("waits:", psycogreen.status().waits >= 20)
