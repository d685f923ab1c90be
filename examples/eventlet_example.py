"""Queries and downloads that overlap, under eventlet.

python eventlet_example.py
"""

import eventlet

eventlet.monkey_patch()

import psycogreen.eventlet

psycogreen.eventlet.patch_psycopg()

from blocking_jobs import download, query, slow_server

with slow_server() as url:
    jobs = [eventlet.spawn(query, 3, 0.2), eventlet.spawn(download, 2, 0.3, url)]
    for job in jobs:
        job.wait()
