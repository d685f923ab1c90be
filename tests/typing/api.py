"""The public interface as a type checker sees it. Never run: mypy reads it."""

from functools import partial
from typing import assert_type

import psycopg2
from psycopg2.extensions import set_wait_callback

import psycogreen
import psycogreen.eventlet
import psycogreen.gevent
import psycogreen.uwsgi

assert_type(psycogreen.__version__, str)

psycogreen.patch_psycopg()
psycogreen.patch_psycopg("gevent")
psycogreen.patch_psycopg("eventlet", replace=True)
psycogreen.gevent.patch_psycopg()
psycogreen.gevent.patch_psycopg(replace=True)
psycogreen.eventlet.patch_psycopg()
psycogreen.eventlet.patch_psycopg(replace=True)
psycogreen.patch_psycopg("uwsgi")
psycogreen.uwsgi.patch_psycopg(replace=True)
psycogreen.patch_psycopg(resolve_hosts=False, cancel_interrupted=False)
psycogreen.gevent.patch_psycopg(resolve_hosts=False, cancel_interrupted=False)
psycogreen.unpatch_psycopg()

with psycogreen.blocking():
    pass

status = psycogreen.status()
assert_type(status, psycogreen.Status)
assert_type(status.framework, str | None)
assert_type(status.engine, str | None)
assert_type(status.callback, str | None)
assert_type(status.monkey_patched, bool)
assert_type(status.pid, int)
assert_type(status.resolve_hosts, bool)
assert_type(status.cancel_interrupted, bool)
assert_type(status.compiled, bool)
assert_type(status.waiting, int)
assert_type(status.longest_wait, float)
assert_type(status.waits, int)
assert_type(status.timed_out, int)
assert_type(status.cancelled, int)

try:
    conn = psycopg2.connect("", async_=True)
    psycogreen.gevent.gevent_wait_callback(conn)
    psycogreen.gevent.gevent_wait_callback(conn, timeout=1.5)
    psycogreen.eventlet.eventlet_wait_callback(conn, None)
    psycogreen.uwsgi.uwsgi_wait_callback(conn)
    psycogreen.uwsgi.uwsgi_wait_callback(conn, timeout=2)
except psycogreen.WaitTimeout as ex:
    error: psycopg2.OperationalError = ex
except psycogreen.PatchConflict as ex:
    conflict: RuntimeError = ex

set_wait_callback(partial(psycogreen.gevent.gevent_wait_callback, timeout=1))


@psycogreen.uwsgi.bound_stack
def application(environ: dict[str, str], start_response: object) -> list[bytes]:
    """A WSGI callable, which stays what it is."""
    return []


assert_type(application({}, None), list[bytes])

report = psycogreen.check("", framework="gevent", queries=5, seconds=0.1, say=print)
assert_type(report, psycogreen.CheckReport)
assert_type(report.cooperative, bool)
assert_type(report.problems, tuple[str, ...])
assert_type(report.longest_stall, float | None)
assert_type(report.connect_timeout_honoured, bool | None)
