"""A spooler's function, which queries."""

import uwsgi
from psycopg2.extensions import get_wait_callback
from uwsgi_app import query


def spooler(_):
    """Query, and say so in the log."""
    answer = query("select 1, pg_sleep(0.1)")[0]
    print(f"spooler queried: {answer}, callback: {get_wait_callback()}", flush=True)
    return uwsgi.SPOOL_OK


uwsgi.spooler = spooler
