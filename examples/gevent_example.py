"""Queries and downloads that overlap, under gevent.

python gevent_example.py
"""

from gevent import monkey

monkey.patch_all()

import psycogreen.gevent

psycogreen.gevent.patch_psycopg()

import gevent
from blocking_jobs import download, query, slow_server

with slow_server() as url:
    jobs = [gevent.spawn(query, 3, 0.2), gevent.spawn(download, 2, 0.3, url)]
    gevent.joinall(jobs, raise_error=True)
