"""A mule: it queries, once, and then waits for its end."""

import time

from psycopg2.extensions import get_wait_callback
from uwsgi_app import query

answer = query("select 1, pg_sleep(0.1)")[0]
print(f"mule queried: {answer}, callback: {get_wait_callback()}", flush=True)
time.sleep(600)
