"""An interrupted wait ends the query on the server as well."""

import _socket
import logging
import os
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from traceback import extract_tb

import children
import psycopg2
import pytest
from greenlet import GreenletExit
from psycopg2.extensions import parse_dsn, set_wait_callback

import psycogreen
from psycogreen._wait import cancel, native, offload

native_sleep = native.original("time", "sleep")


@pytest.fixture
def is_active(connect):
    """Return whether a backend still works on a query; wait for its end."""
    cursor = connect().cursor()
    cursor.connection.autocommit = True

    def is_active(pid, seconds=30):
        deadline = time.monotonic() + seconds
        while True:
            cursor.execute("select state from pg_stat_activity where pid = %s", (pid,))
            row = cursor.fetchone()
            if row is None or row[0] != "active":
                return False
            if time.monotonic() > deadline:
                return True
            time.sleep(0.01)

    return is_active


def test_timeout_cancels(green, conn, is_active):
    """A Timeout ends the query on the server, and is raised unchanged."""
    pid = conn.info.backend_pid
    timeout = green.Timeout(0.1)
    with pytest.raises(green.Timeout) as caught, timeout:
        conn.cursor().execute("select pg_sleep(60)")
    assert caught.value is timeout
    assert not is_active(pid)
    assert conn.closed


def test_kill_cancels(green, conn, is_active):
    """Killing the greenlet ends the query on the server."""
    pid = conn.info.backend_pid
    task = green.spawn(conn.cursor().execute, "select pg_sleep(60)")
    with green.ticking():
        green.sleep(0.1)
    green.kill(task)
    assert not is_active(pid)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_exception_cancels(green, connect, is_active, error):
    """An exception thrown into the greenlet ends the query on the server."""
    conn = connect()
    pid = conn.info.backend_pid
    thrown = error("thrown")
    caught = []

    def query():
        try:
            conn.cursor().execute("select pg_sleep(60)")
        except BaseException as ex:
            caught.append(ex)

    task = green.spawn(query)
    green.sleep(0.1)
    green.throw(task, thrown)
    green.wait(task)
    assert caught == [thrown]
    frames = [entry.name for entry in extract_tb(thrown.__traceback__)]
    assert "query" in frames
    assert not is_active(pid)


def test_wait_timeout_cancels(green, conn, is_active):
    """The callback's own limit ends the query on the server."""
    pid = conn.info.backend_pid
    set_wait_callback(partial(green.callback, timeout=0.1))
    with pytest.raises(psycogreen.WaitTimeout):
        conn.cursor().execute("select pg_sleep(60)")
    set_wait_callback(green.callback)
    assert not is_active(pid)


def test_locks_are_released(green, connect):
    """The locks of an interrupted transaction are released."""
    holder, other = connect(), connect()
    cursor = holder.cursor()
    cursor.execute("select pg_advisory_xact_lock(4711)")
    with pytest.raises(green.Timeout), green.Timeout(0.1):
        cursor.execute("select pg_sleep(60)")
    with green.Timeout(60):
        other.cursor().execute("select pg_advisory_xact_lock(4711)")


def test_not_cancelled_unless_enabled(green, connect, is_active):
    """With cancel_interrupted=False the server is left alone."""
    psycogreen.unpatch_psycopg()
    psycogreen.patch_psycopg(cancel_interrupted=False)
    try:
        assert not psycogreen.status().cancel_interrupted
        conn, other = connect(), connect()
        pid = conn.info.backend_pid
        with pytest.raises(green.Timeout), green.Timeout(0.1):
            conn.cursor().execute("select pg_sleep(60)")
        assert is_active(pid, 0.5)
        other.cursor().execute("select pg_terminate_backend(%s)", (pid,))
    finally:
        psycogreen.unpatch_psycopg()
        psycogreen.patch_psycopg()


def test_errors_do_not_cancel(green, conn, monkeypatch):
    """An error of the query itself does not send a cancel request."""
    cancelled = []
    monkeypatch.setattr(
        "psycogreen._wait.callback.cancel", lambda *args: cancelled.append(args)
    )
    with pytest.raises(psycopg2.Error):
        conn.cursor().execute("select 1 / 0")
    assert not cancelled


def test_asynchronous_connection_is_left_alone(green, dsn, connect, is_active):
    """The query of an asynchronous connection goes on after an interrupted wait."""
    holder = connect().cursor()
    holder.execute("select pg_advisory_lock(1)")
    conn = psycopg2.connect(dsn, async_=True)
    green.callback(conn)
    cursor = conn.cursor()
    cursor.execute("select 1, pg_advisory_lock(1)")
    with pytest.raises(green.Timeout), green.Timeout(0.1):
        green.callback(conn)
    assert is_active(conn.info.backend_pid, 0)
    holder.execute("select pg_advisory_unlock(1)")
    green.callback(conn)
    assert cursor.fetchone()[0] == 1
    conn.close()


class Proxy:
    """Passes the first connection on to the server and lets all others wait.

    It lives in native threads, on the native sockets that are never patched.
    """

    def __init__(self, port):
        """Listen, for a server on *port*."""
        self._listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(200)
        self._server = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        self._server.connect(("127.0.0.1", port))
        self._held = []
        self._accepting = native.original("_thread", "allocate_lock")()
        self._accepting.acquire()
        self.port = self._listener.getsockname()[1]
        native.start_thread(self._accept)

    def _accept(self):
        with suppress(OSError):
            client = self._hold()
            native.start_thread(lambda: self._copy(client, self._server))
            native.start_thread(lambda: self._copy(self._server, client))
            while True:
                self._hold()
        self._accepting.release()

    def _hold(self):
        descriptor, _ = self._listener._accept()
        self._held.append(_socket.socket(fileno=descriptor))
        return self._held[-1]

    def _copy(self, source, target):
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)

    @property
    def held(self):
        """How many connections wait."""
        return len(self._held) - 1

    def refuse(self):
        """Take no more connections."""
        with suppress(OSError):
            self._listener.shutdown(_socket.SHUT_RDWR)
        self._listener.close()

    def close(self):
        """End all connections, once no more are taken."""
        self.refuse()
        self._accepting.acquire()
        for sock in [self._server, *self._held]:
            with suppress(OSError):
                sock.shutdown(_socket.SHUT_RDWR)
            sock.close()


@pytest.fixture
def proxy(dsn):
    """A proxy that takes a cancel request and never answers."""
    proxy = Proxy(int(parse_dsn(dsn)["port"]))
    yield proxy
    proxy.close()


def test_silent_server(green, proxy, caplog, monkeypatch):
    """A server that accepts no cancel request delays the wait by only one second."""
    monkeypatch.setattr(cancel, "CANCEL_WAIT", 1)
    conn = psycopg2.connect(
        f"host=127.0.0.1 port={proxy.port} user=postgres dbname=postgres"
    )
    begin = time.monotonic()
    with green.ticking() as ticker:
        with pytest.raises(green.Timeout), green.Timeout(0.1):
            conn.cursor().execute("select pg_sleep(60)")
        ended = time.monotonic() - begin
    assert 1.1 <= ended < 30
    assert ticker.longest_stall < 0.9
    [record] = caplog.records
    assert (record.name, record.levelname) == ("psycogreen", "WARNING")
    assert "has not accepted the request within 1 s" in record.getMessage()
    assert f"port {proxy.port}" in record.getMessage()


def through(proxy):
    """Return a connection through the proxy."""
    return psycopg2.connect(
        f"host=127.0.0.1 port={proxy.port} user=postgres dbname=postgres"
    )


def test_asked_to_cancel_by_a_silent_server(green, proxy):
    """The loop goes on while connection.cancel() waits for the server."""
    conn = through(proxy)
    task = green.spawn(conn.cursor().execute, "select pg_sleep(60)")
    with green.ticking(), pytest.raises(green.Timeout), green.Timeout(0.2):
        conn.cancel()
    assert proxy.held == 1
    green.kill(task)


def test_asked_to_cancel_and_refused(green, proxy):
    """connection.cancel() raises the error of psycopg2's own method."""
    conn = through(proxy)
    task = green.spawn(conn.cursor().execute, "select pg_sleep(60)")
    green.sleep(0)
    proxy.refuse()
    with pytest.raises(psycopg2.OperationalError, match="failed"):
        conn.cancel()
    green.kill(task)


def test_asked_to_cancel_in_the_hub_and_refused(green, proxy, caplog):
    """connection.cancel() in the hub logs an error, since it cannot wait for it."""
    conn = through(proxy)
    task = green.spawn(conn.cursor().execute, "select pg_sleep(60)")
    green.sleep(0)
    proxy.refuse()
    green.call_in_hub(conn.cancel)
    deadline = time.monotonic() + 60
    while "connect() failed" not in caplog.text:
        assert time.monotonic() < deadline
        green.sleep(0.01)
    green.kill(task)


def test_failed_cancel_is_logged(green, conn, caplog, monkeypatch):
    """A cancel request that fails is logged, never raised."""

    def fail(conn):
        raise OSError(11, "no thread today")

    monkeypatch.setattr(cancel, "CancelRequest", fail)
    with (
        caplog.at_level(logging.WARNING, "psycogreen"),
        pytest.raises(green.Timeout),
        green.Timeout(0.1),
    ):
        conn.cursor().execute("select pg_sleep(60)")
    assert "no thread today" in caplog.text


def test_refused_cancel_is_logged(green, dsn, proxy, caplog):
    """A cancel request that the server refuses is logged, never raised."""
    conn = psycopg2.connect(
        f"host=127.0.0.1 port={proxy.port} user=postgres dbname=postgres"
    )
    proxy.refuse()
    with pytest.raises(green.Timeout), green.Timeout(0.1):
        conn.cursor().execute("select pg_sleep(60)")
    assert "connect() failed" in caplog.text


def test_cancel_without_a_thread(green, conn, caplog, monkeypatch):
    """A cancel request for which no thread can be started is not waited for."""

    def fail(function):
        raise RuntimeError(2, "can't start new thread")

    before = set(cancel._under_way)  # other tests' requests
    monkeypatch.setattr(offload, "start", fail)
    with pytest.raises(green.Timeout), green.Timeout(0.1):
        conn.cursor().execute("select pg_sleep(60)")
    assert "can't start new thread" in caplog.text
    assert not cancel._under_way - before


def test_fork_during_a_cancel(green, proxy, script):
    """A forked child does not wait at its end for its parent's cancel requests."""
    script(
        f"""
        from children import exit_status
        from psycogreen._wait import cancel
        from psycopg2.extensions import TRANSACTION_STATUS_ACTIVE

        address = "host=127.0.0.1 port={proxy.port}"
        conn = psycopg2.connect(f"{{address}} user=postgres dbname=postgres")
        task = green.spawn(conn.cursor().execute, "select pg_sleep(60)")
        while conn.info.transaction_status != TRANSACTION_STATUS_ACTIVE:
            green.sleep(0.01)
        green.kill(task)
        assert cancel._under_way
        child = os.fork()
        if not child:
            os._exit(len(cancel._under_way))
        assert exit_status(child) == 0
        os._exit(0)
        """
    )


def test_interrupted_while_it_is_woken(green, monkeypatch):
    """An interrupted wait keeps its bell open for a call that has ended: no SIGPIPE."""
    ring, wait_socket = offload.ring, native.wait_socket
    begun, awaited, told = [], [], []

    def ring_late(bell):
        begun.append(bell)
        while not awaited:
            native_sleep(0.001)
        try:
            told.append(ring(bell))
        except OSError as ex:
            told.append(ex)

    def wait(fd, **options):
        awaited.append("by the interrupted call")
        wait_socket(fd, **options)

    monkeypatch.setattr(offload, "ring", ring_late)
    monkeypatch.setattr(native, "wait_socket", wait)
    call = offload.Call(lambda: None)
    task = green.spawn(call.wait, green.module._wait_socket)
    while not call._writers:
        green.sleep(0.001)
    offload.start(call.run)
    while not begun:
        green.sleep(0.001)
    green.kill(task)
    awaited.append("no more")
    while not told:
        green.sleep(0.001)
    assert told == [None]


def test_interrupted_again(green, proxy, monkeypatch):
    """A second interruption during the wait for the cancel request is not lost."""
    monkeypatch.setattr(cancel, "CANCEL_WAIT", 30)
    conn = psycopg2.connect(
        f"host=127.0.0.1 port={proxy.port} user=postgres dbname=postgres"
    )
    ended = []

    def query():
        try:
            with green.Timeout(0.1):
                conn.cursor().execute("select pg_sleep(60)")
        except BaseException as ex:
            ended.append(type(ex).__name__)
            raise

    task = green.spawn(query)
    while not proxy.held:
        green.sleep(0.01)
    begin = time.monotonic()
    green.kill(task)
    green.sleep(0.01)
    assert time.monotonic() - begin < 15
    assert ended == ["GreenletExit"]


class OwnExit(GreenletExit):
    """An application's own kind of kill."""


@pytest.mark.parametrize("kill", [(), (OwnExit(),)], ids=["usual", "own"])
def test_killed_and_closed(green, connect, kill):
    """The connection of a killed greenlet can be closed immediately."""
    conn = connect()
    task = green.spawn(conn.cursor().execute, "select pg_sleep(60)")
    green.sleep(0.1)
    green.kill(task, *kill)
    conn.close()


@pytest.mark.parametrize("end", ["sys.exit()", "os.kill(os.getpid(), signal.SIGINT)"])
def test_process_ends(green, dsn, connect, end):
    """A process that ends during queries leaves none of them running."""
    code = f"""
import os, signal, sys, psycopg2, psycogreen, frameworks
from run import patch
signal.signal(signal.SIGINT, signal.default_int_handler)
patch({os.environ["PSYCOGREEN_TEST_BACKEND"]!r})
psycogreen.patch_psycopg()
green = frameworks.current()
def query():
    conn = psycopg2.connect({dsn!r}, application_name="ending")
    conn.cursor().execute("select pg_sleep(60)")
tasks = [green.spawn(query) for _ in range(5)]
green.sleep(0.5)
def end():
    for task in tasks:
        green.kill(task)
    {end}
end()
"""
    command = [sys.executable, "-P", "-c", code]
    subprocess.run(
        command,
        env=children.environment(),
        check=False,
        timeout=60,
        stderr=subprocess.DEVNULL,
    )
    # The server has taken the requests by now, and acts on them in a moment.
    cursor = connect().cursor()
    cursor.connection.autocommit = True
    deadline = time.monotonic() + 60
    active = 1
    while active and time.monotonic() < deadline:
        cursor.execute(
            "select count(*) from pg_stat_activity"
            " where application_name = 'ending' and state = 'active'"
        )
        [active] = cursor.fetchone()
    assert not active


def test_nothing_is_left(green, connect):
    """Descriptors and threads are as many after many interruptions as before."""

    def interrupt():
        conn = connect()
        with suppress(green.Timeout), green.Timeout(0.01):
            conn.cursor().execute("select pg_sleep(60)")

    interrupt()
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        tasks = [green.spawn(interrupt) for _ in range(10)]
        for task in tasks:
            green.wait(task)
    deadline = time.monotonic() + 60
    while len(os.listdir("/proc/self/fd")) > descriptors or cancel._under_way:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_interrupted_commit(green, connect, is_active):
    """A commit that waits, for a deferred trigger, is interrupted like a query."""
    conn = connect()
    cursor = conn.cursor()
    cursor.execute(
        """
        create temporary table slow_commit (n int);
        create function pg_temp.wait() returns trigger language plpgsql
            as 'begin perform pg_sleep(60); return null; end';
        create constraint trigger wait after insert on slow_commit
            deferrable initially deferred for each row
            execute function pg_temp.wait()
        """
    )
    conn.commit()
    pid = conn.info.backend_pid
    cursor.execute("insert into slow_commit values (1)")
    with pytest.raises(green.Timeout), green.Timeout(0.1):
        conn.commit()
    assert conn.closed
    assert not is_active(pid)
