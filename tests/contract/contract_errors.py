"""An error that was handled keeps nothing alive until the garbage collector runs.

An error refers to the frames that it went through, and so to their local variables and
the caller's. If one of those refers to the error, all of them live on.
"""

import gc
import io
import time
import weakref
from functools import partial
from types import SimpleNamespace

import psycopg2
import pytest
from psycopg2.extras import LogicalReplicationConnection

import psycogreen
from psycogreen.pool import Pool, PoolClosed


class FileError(Exception):
    """The error of a file."""


def broken(_data):
    """Raise an error, as a method of a file."""
    raise FileError


FILE = SimpleNamespace(read=broken, write=broken)


def query(green, connect, conn):
    """Fail in a query."""
    conn.cursor().execute("select 1/0")


def executemany(green, connect, conn):
    """Fail in one of several queries."""
    conn.cursor().executemany("select 1/%s", [(1,), (0,)])


def session_ended(green, connect, conn):
    """Lose the session."""
    conn.cursor().execute("select pg_terminate_backend(pg_backend_pid())")


def query_timed_out(green, connect, conn):
    """Leave a query after a time."""
    with green.Timeout(0.05):
        conn.cursor().execute("select pg_sleep(60)")


def turn_timed_out(green, connect, conn):
    """Leave the queue of a connection after a time."""
    holder = connect()
    holder.cursor().execute("select pg_advisory_lock(1306)")
    task = green.spawn(conn.cursor().execute, "select pg_advisory_lock(1306)")
    green.sleep(0)
    try:
        with green.Timeout(0.05):
            conn.commit()
    finally:
        holder.close()
        green.wait(task)


def waits_for_itself(green, connect, conn):
    """Use a connection in its own COPY."""
    file = SimpleNamespace(write=lambda _row: conn.commit())
    conn.cursor().copy_expert("copy (select 1) to stdout", file)


def copy_from(green, connect, conn):
    """Fail to read the file of a COPY."""
    conn.cursor().execute("create temp table copied (n int)")
    conn.cursor().copy_from(FILE, "copied")


def copy_to(green, connect, conn):
    """Fail to write to the file of a COPY."""
    conn.cursor().copy_expert("copy (select 1) to stdout", FILE)


def copy_refused(green, connect, conn):
    """Let the server refuse a COPY."""
    conn.cursor().copy_expert("copy missing to stdout", io.StringIO())


def copy_without_file(green, connect, conn):
    """Execute a COPY as a query."""
    conn.cursor().execute("copy (select 1) to stdout")


def large_object_missing(green, connect, conn):
    """Open a large object that does not exist, in a native thread."""
    conn.lobject(1, "rb")


def large_object_read(green, connect, conn):
    """Fail to read a large object."""
    thing = conn.lobject(0, "wb")
    conn.cursor().execute("select lo_close(0)")
    thing.read()


def large_object_timed_out(green, connect, conn):
    """Leave a native thread's call after a time."""
    oid = conn.lobject(0, "wb").oid
    conn.commit()
    other = connect()
    other.cursor().execute("select lo_unlink(%s)", [oid])
    with green.Timeout(0.05):
        conn.lobject(oid, "wb").unlink()


def not_replicating(green, connect, conn):
    """Consume a stream that has not begun."""
    factory = LogicalReplicationConnection
    connect(connection_factory=factory).cursor().consume_stream(print)


def host_unknown(green, connect, conn):
    """Look up a host name that does not exist, in a native thread or in a greenlet."""
    connect(host="missing.invalid")


def server_missing(green, connect, conn):
    """Fail to connect."""
    connect(host="/missing")


def database_unknown(green, connect, conn):
    """Let the server refuse the connection."""
    connect(dbname="missing")


def pool_closed(green, connect, conn):
    """Wait for a pool that another greenlet closes."""
    pool = Pool(connect, min_size=0, max_size=1)
    lent = pool.get()
    task = green.spawn(pool.close)
    try:
        pool.get()
    finally:
        green.wait(task)
        pool.put(lent)


def pool_cannot_connect(green, connect, conn):
    """Wait for a pool that cannot connect."""
    pool = Pool(partial(connect, dbname="missing"), min_size=0, max_size=1)
    try:
        pool.get()
    finally:
        pool.close()


def check_fails(green, connect, conn):
    """Check with several connections to a database that does not exist."""
    psycogreen.check(f"{conn.dsn} dbname=missing", framework=green.name, queries=3)


ERRORS = {
    query: psycopg2.errors.DivisionByZero,
    executemany: psycopg2.errors.DivisionByZero,
    session_ended: psycopg2.OperationalError,
    query_timed_out: None,
    turn_timed_out: None,
    waits_for_itself: psycopg2.ProgrammingError,
    copy_from: psycopg2.errors.QueryCanceled,
    copy_to: FileError,
    copy_refused: psycopg2.errors.UndefinedTable,
    copy_without_file: psycopg2.ProgrammingError,
    large_object_missing: psycopg2.OperationalError,
    large_object_read: psycopg2.OperationalError,
    large_object_timed_out: None,
    not_replicating: psycopg2.ProgrammingError,
    host_unknown: psycopg2.OperationalError,
    server_missing: psycopg2.OperationalError,
    database_unknown: psycopg2.OperationalError,
    pool_closed: PoolClosed,
    pool_cannot_connect: psycopg2.OperationalError,
    check_fails: psycopg2.OperationalError,
}
"""What fails, and with which error; ``None`` is the framework's own Timeout."""


@pytest.mark.parametrize("fail", ERRORS, ids=lambda fail: fail.__name__)
def test_nothing_is_kept(green, dsn, connect, fail):
    """A connection, and the caller's variables, do not live longer for an error."""
    expected = ERRORS[fail] or green.Timeout

    def handle():
        conn = psycopg2.connect(dsn)
        local = set()
        try:
            fail(green, connect, conn)
        except expected:
            return weakref.ref(local), weakref.ref(conn)
        pytest.fail("there was no error")

    gc.disable()
    try:
        kept = handle()
        # A native thread may have to end its call first.
        deadline = time.monotonic() + 10
        while any(reference() for reference in kept):
            assert time.monotonic() < deadline, kept
            green.sleep(0.001)
    finally:
        gc.enable()
