"""The application of the uWSGI tests, with one function for each path.

It has no green code: it runs under every engine, and without one.
"""

import contextvars
import gc
import io
import json
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from dataclasses import asdict

import psycopg2
import uwsgi

import psycogreen

try:
    from psycogreen.uwsgi import bound_stack
except ImportError:  # the engine is gevent

    def bound_stack(application):
        """Do without it."""
        return application


DSN = os.environ["DSN"]
idle = []
request_token = contextvars.ContextVar("request_token")


@contextmanager
def connection():
    """Lend a connection, one of those that no other request has."""
    conn = idle.pop() if idle else psycopg2.connect(DSN)
    conn.autocommit = True
    yield conn
    idle.append(conn)  # not after an error: it may be closed


def query(sql, *parameters):
    """Return the first row."""
    with connection() as conn:
        cursor = conn.cursor()
        cursor.execute(sql, parameters)
        return cursor.fetchone()


def wait(token, seconds):
    """Let PostgreSQL wait, and echo the token."""
    return query("select %s, pg_sleep(%s)", token, float(seconds))[0]


def plain(token, seconds):
    """Wait once."""
    return wait(token, seconds)


def assert_handled(exception):
    """Assert that this is the exception being handled."""
    assert sys.exc_info()[1] is exception, sys.exc_info()


def handling(token, seconds):
    """Wait while an exception is handled, and find that one afterwards."""
    try:
        raise LookupError(token)
    except LookupError as ex:
        answer = wait(token, seconds)
        assert_handled(ex)
    assert_handled(None)
    return answer


def handling_in_generator(token, seconds):
    """The same where the exception is a generator's."""

    def answers():
        try:
            raise LookupError(token)
        except LookupError as ex:
            yield wait(token, seconds)
            assert_handled(ex)
            yield wait(token, seconds)
            assert_handled(ex)

    try:
        raise KeyError(token)
    except KeyError as ex:
        found = set(answers())
        assert_handled(ex)
    return found.pop()


def context(token, seconds):
    """Find a context variable after the wait as it was before."""
    request_token.set(token)
    answer = wait(token, seconds)
    assert request_token.get() == token
    copied = contextvars.copy_context()
    assert copied.run(wait, token, 0) == token
    assert copied.run(request_token.get) == token
    return answer


def dive(depth, bottom):
    """Call *bottom* so many Python functions deep."""
    local = depth
    answer = dive(depth - 1, bottom) if depth else bottom()
    assert local == depth
    return answer


def deep(token, seconds):
    """Wait in deep recursion, and recurse deeply before and after it."""
    assert dive(800, lambda: token) == token
    answer = dive(300, lambda: wait(token, seconds))
    assert dive(800, lambda: token) == token
    return answer


def failing(token, seconds):
    """A query that fails, and one on the same connection that does not."""
    with connection() as conn:
        cursor = conn.cursor()
        try:
            cursor.execute("select 1 / 0 from pg_sleep(%s)", (float(seconds),))
        except psycopg2.errors.DivisionByZero as ex:
            cursor.execute("select %s, pg_sleep(%s)", (token, float(seconds)))
            assert_handled(ex)
    return cursor.fetchone()[0]


def connecting(token, seconds):
    """A query on a new connection."""
    conn = psycopg2.connect(DSN)
    cursor = conn.cursor()
    cursor.execute("select %s, pg_sleep(%s)", (token, float(seconds)))
    answer = cursor.fetchone()[0]
    conn.close()
    return answer


def destroying(token, seconds):
    """Wait in a destructor, deep in the destruction of nested containers."""

    class Waits:
        def __del__(self):
            found.append(wait(token, seconds))

    found = []
    nested = [Waits()]
    for _ in range(200):
        nested = [nested]
    del nested
    return found[0]


def shared(token, seconds):
    """Query and commit on the connection that all these requests share."""
    if not shared_connections:
        # Several may do so at once: all use the first one.
        shared_connections.append(psycopg2.connect(DSN))
    conn = shared_connections[0]
    cursor = conn.cursor()
    cursor.execute("select %s, pg_sleep(%s)", (token, float(seconds)))
    answer = cursor.fetchone()[0]
    conn.commit()
    return answer


shared_connections = []


def explicit(token, seconds):
    """psycopg2's own asynchronous connection, waited for explicitly."""
    from psycogreen.uwsgi import uwsgi_wait_callback

    conn = psycopg2.connect(DSN, async_=True)
    uwsgi_wait_callback(conn)
    cursor = conn.cursor()
    cursor.execute("select %s, pg_sleep(%s)", (token, float(seconds)))
    uwsgi_wait_callback(conn)
    answer = cursor.fetchone()[0]
    conn.close()
    return answer


def limited(token, seconds, limit):
    """A wait that may take no longer than the limit; tell how long it took."""
    from psycogreen.uwsgi import uwsgi_wait_callback

    conn = psycopg2.connect(DSN, async_=True)
    uwsgi_wait_callback(conn)
    cursor = conn.cursor()
    cursor.execute("select %s, pg_sleep(%s)", (token, float(seconds)))
    start = time.monotonic()
    try:
        uwsgi_wait_callback(conn, float(limit))
        outcome = cursor.fetchone()[0]
    except psycogreen.WaitTimeout as ex:
        outcome = str(ex)
    taken = time.monotonic() - start
    conn.close()
    return json.dumps({"outcome": outcome, "taken": taken})


def copied(token, seconds):
    """Copy the token out of the database and into it, and into a large object and back."""
    conn = psycopg2.connect(DSN)
    cursor = conn.cursor()
    out = io.StringIO()
    sql = f"copy (select {int(token)} from pg_sleep({float(seconds)})) to stdout"
    cursor.copy_expert(sql, out)
    cursor.execute("create temporary table copied (token text)")
    cursor.copy_from(io.StringIO(out.getvalue() * 1000), "copied")
    cursor.execute("select token, count(*) from copied group by token")
    [(found, count)] = cursor.fetchall()
    thing = conn.lobject(mode="wb")
    thing.write(f"{found} {count}" * 100_000)
    thing.seek(0)
    data = thing.read()
    thing.unlink()
    conn.close()
    assert data == f"{found} {count}".encode() * 100_000
    return f"{found} {count}"


def exhausted(token, how):
    """Recurse without end, after a wait; say how it ended."""
    recursions = {
        "json": lambda: json.loads("[" * 100_000),
        "attribute": lambda: Recursive().attribute,
        "sort": lambda: sort_for_ever(1),
    }
    wait(token, 0)
    try:
        recursions[how]()
    except RecursionError:
        return "RecursionError"


class Recursive:
    """An attribute that asks for another one."""

    def __getattr__(self, name):
        """Ask for the next."""
        return getattr(self, f"{name}_")


def sort_for_ever(key):
    """Sort by what sorting by it is."""
    return sorted([key], key=sort_for_ever)


def collect(token):
    """Collect garbage."""
    gc.collect()
    return token


def alarm(token, interval):
    """Have a signal handler query every so many seconds, between any two steps."""
    handling = []

    def handler(*_):
        if not handling:
            handling.append(True)
            alarms.append(wait(token, 0))
            handling.clear()

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, float(interval), float(interval))
    return token


def count_alarms(_):
    """Return how often the handler has queried."""
    return str(len(alarms))


alarms = []


def thread(token, seconds):
    """Start native threads that query by themselves; say how it went later."""

    def run():
        thread_answers[token] = wait(token, seconds)

    threading.Thread(target=run).start()
    return token


thread_answers = {}


def thread_answer(token):
    """Return what the thread of that token has got, if it has."""
    return thread_answers.get(token, "")


def error(token, seconds):
    """An error that the application does not handle, after a wait."""
    raise RuntimeError(wait(token, seconds))


def status(*_):
    """Psycogreen's status, and the id of this worker."""
    told = asdict(psycogreen.status())
    return json.dumps({**told, "worker": uwsgi.worker_id()})


def detect(*_):
    """Patch for the framework that psycogreen detects."""
    psycogreen.unpatch_psycopg()
    psycogreen.patch_psycopg()
    psycogreen.patch_psycopg()
    return status()


def spool(token):
    """Leave a task to the spooler."""
    uwsgi.spool({b"token": token.encode()})
    return token


def memory(*_):
    """The resident memory of this worker, in bytes."""
    with open("/proc/self/statm") as statm:
        return str(int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))


def streamed(token, seconds):
    """Yield pieces, with a wait before each."""
    for _ in range(3):
        yield wait(token, seconds).encode()


def posted(environ, token, seconds):
    """Read the body, then wait."""
    body = environ["wsgi.input"].read()
    return f"{len(body)} {wait(token, seconds)}"


MIX = [
    plain,
    handling,
    handling_in_generator,
    context,
    deep,
    failing,
    connecting,
    destroying,
    explicit,
]


def mixed(token, seconds):
    """One of all the above, as the token's number has it."""
    return MIX[int(token) % len(MIX)](token, seconds)


@bound_stack
def application(environ, start_response):
    """Answer /function/argument/... with what the function returns."""
    name, *arguments = environ["PATH_INFO"].strip("/").split("/")
    headers = [("Content-Type", "text/plain")]
    if name == "streamed":
        start_response("200 OK", headers)
        return streamed(*arguments)
    if name == "error":
        return error(*arguments)
    if name == "posted":
        arguments.insert(0, environ)
    try:
        answer = globals()[name](*arguments)
    except Exception:
        answer = traceback.format_exc()  # which no test expects
    start_response("200 OK", headers)
    return [answer.encode()]
