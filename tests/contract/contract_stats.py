"""The figures of status(), and the log."""

import logging
import os
import re
import time
from functools import partial

import psycopg2
import pytest
from hub_tools import await_
from psycopg2.extensions import set_wait_callback

import psycogreen
from psycogreen._wait import native, stats


def grown(before):
    """Return how many waits have ended, were timed out, and cancelled since *before*."""
    after = psycogreen.status()
    return (
        after.waits - before.waits,
        after.timed_out - before.timed_out,
        after.cancelled - before.cancelled,
    )


def test_waits(green, dsn):
    """Each connection attempt, query and commit is one wait."""
    green.sleep(0)  # in Python they are counted when all in a batch were woken
    before = psycogreen.status()
    conn = psycopg2.connect(dsn)
    conn.cursor().execute("select 1")  # and the "begin" before it
    conn.commit()
    green.sleep(0)
    assert grown(before)[:2] == (4, 0)
    conn.close()


def test_waiting(green, connect):
    """status() has the number of waits under way, and the age of the oldest."""
    conns = [connect() for _ in range(5)]
    status = psycogreen.status()
    assert (status.waiting, status.longest_wait) == (0, 0.0)
    holder = connect()
    holder.cursor().execute("select pg_advisory_lock(1)")
    begin = time.monotonic()
    query = "select pg_advisory_xact_lock_shared(1)"
    for conn in conns:
        conn.autocommit = True  # one wait each, without one for the "begin"
    tasks = [green.spawn(conn.cursor().execute, query) for conn in conns[:1]]
    await_(green, lambda: psycogreen.status().waiting == 1)
    first = time.monotonic()
    green.sleep(0.15)
    tasks += [green.spawn(conn.cursor().execute, query) for conn in conns[1:]]
    await_(green, lambda: psycogreen.status().waiting == 5)
    least = time.monotonic() - first
    longest = psycogreen.status().longest_wait
    assert least <= longest <= time.monotonic() - begin
    holder.cursor().execute("select pg_advisory_unlock(1)")
    for task in tasks:
        green.wait(task)
    status = psycogreen.status()
    assert (status.waiting, status.longest_wait) == (0, 0.0)


def test_refused(green, conn):
    """A refused second wait does not change the age of the first one."""
    before = psycogreen.status()
    conn.autocommit = True  # one wait, without one for the "begin"
    task = green.spawn(conn.cursor().execute, "select pg_sleep(60)")
    await_(green, lambda: psycogreen.status().longest_wait > 0.1)
    age = psycogreen.status().longest_wait
    with pytest.raises(psycopg2.ProgrammingError, match="waits for this connection"):
        green.callback(conn)
    assert psycogreen.status().longest_wait >= age
    green.kill(task)
    await_(green, lambda: grown(before)[2] == 1)


def test_cancelled(green, conn):
    """An interrupted query is counted as cancelled when the server accepts the request."""
    before = psycogreen.status()
    with pytest.raises(green.Timeout), green.Timeout(0.1):
        conn.cursor().execute("select pg_sleep(60)")
    await_(green, lambda: grown(before)[2] == 1)
    assert grown(before)[1] == 0
    assert psycogreen.status().waiting == 0


def test_cancelled_by_the_application(green, conn):
    """connection.cancel() is counted too when the server accepts the request."""
    before = psycogreen.status()
    task = green.spawn(conn.cursor().execute, "select pg_sleep(60)")
    await_(green, lambda: psycogreen.status().longest_wait > 0.1)
    conn.cancel()
    with pytest.raises(psycopg2.errors.QueryCanceled):
        green.wait(task)
    assert grown(before)[1:] == (0, 1)


def test_timed_out(green, conn):
    """The callback's own limit counts as timed out, and is cancelled too."""
    before = psycogreen.status()
    set_wait_callback(partial(green.callback, timeout=0.1))
    with pytest.raises(psycogreen.WaitTimeout):
        conn.cursor().execute("select pg_sleep(60)")
    await_(green, lambda: grown(before)[2] == 1)
    assert grown(before)[1] == 1


def test_connect_timeout(green):
    """A server that does not answer in time counts as timed out."""
    green.sleep(0)  # as in test_waits
    before = psycogreen.status()
    with native.original("socket", "socket")() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        with pytest.raises(psycopg2.OperationalError, match="timeout expired"):
            psycopg2.connect(
                host="127.0.0.1", port=port, user="x", dbname="x", connect_timeout=1
            )
    assert grown(before) == (1, 1, 0)


def test_error(green, conn):
    """A query's own error counts neither as timed out nor as cancelled."""
    before = psycogreen.status()
    with pytest.raises(psycopg2.Error):
        conn.cursor().execute("select 1 / 0")
    assert grown(before)[1:] == (0, 0)
    assert psycogreen.status().waiting == 0


def test_forgotten_wait(green, conn):
    """A wait of the parent that ends in a forked child is not counted."""
    set_wait_callback(partial(green.callback, timeout=30))
    task = green.spawn(conn.cursor().execute, "select pg_sleep(0.2)")
    green.sleep(0.05)
    stats.under_way.clear()
    assert psycogreen.status().waiting == 0
    green.wait(task)
    assert psycogreen.status().waiting == 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork(green, conn):
    """A forked child counts from zero; the parent's waits are counted in the parent."""
    task = green.spawn(conn.cursor().execute, "select pg_sleep(0.3)")
    green.sleep(0)  # it sends the "begin", for whose answer it waits
    pid = native.original("os", "fork")()
    if not pid:
        status = psycogreen.status()
        empty = (status.waiting, status.waits, status.longest_wait) == (0, 0, 0.0)
        os._exit(0 if empty else 1)
    assert os.waitstatus_to_exitcode(native.original("os", "waitpid")(pid, 0)[1]) == 0
    assert psycogreen.status().waiting == 1
    green.wait(task)
    assert psycogreen.status().waiting == 0


def test_interruption_in_the_log(green, conn, caplog):
    """Each interrupted wait is logged at DEBUG, with its exception and its duration."""
    pid = conn.info.backend_pid
    begin = time.monotonic()
    with (
        caplog.at_level(logging.DEBUG, "psycogreen"),
        pytest.raises(green.Timeout),
        green.Timeout(0.2),
    ):
        conn.cursor().execute("select pg_sleep(60)")
    [record] = caplog.records
    assert record.levelno == logging.DEBUG
    found = re.fullmatch(
        r"wait for backend (\d+) interrupted by Timeout after (\d\.\d{3}) s",
        record.getMessage(),
    )
    assert int(found[1]) == pid
    assert 0 < float(found[2]) <= round(time.monotonic() - begin, 3)


def test_installation_in_the_log(green, caplog):
    """Installing and removing the callback are logged once each, at INFO."""
    with caplog.at_level(logging.INFO, "psycogreen"):
        psycogreen.patch_psycopg()
        psycogreen.unpatch_psycopg()
        psycogreen.unpatch_psycopg()
        psycogreen.patch_psycopg()
        psycogreen.patch_psycopg()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "wait callback removed"),
        ("INFO", f"{green.name} wait callback installed"),
    ]


def test_conflict_in_the_log(green, caplog):
    """A conflict and a replaced callback are logged at WARNING."""
    from psycopg2.extras import wait_select

    set_wait_callback(wait_select)
    with pytest.raises(psycogreen.PatchConflict):
        psycogreen.patch_psycopg()
    psycogreen.patch_psycopg(replace=True)
    messages = [record.getMessage() for record in caplog.records]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "already waits with psycopg2.extras.wait_select" in messages[0]
    assert messages[1] == "wait callback psycopg2.extras.wait_select replaced"
