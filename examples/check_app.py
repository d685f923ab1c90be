"""Applications that try out, where they answer, whether psycopg2 lets others run."""

import dataclasses
import json
import os

import psycogreen


def app(environ, start_response):
    """Answer with the report of a check made here."""
    report = psycogreen.check(os.environ["DSN"], queries=5, seconds=0.3)
    body = {"cooperative": report.cooperative, **dataclasses.asdict(report)}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(body).encode()]


def in_native_thread(environ, start_response):
    """Answer with the report of a check made in a thread that is not a greenlet."""
    from gevent import get_hub

    return get_hub().threadpool.apply(app, (environ, start_response))
