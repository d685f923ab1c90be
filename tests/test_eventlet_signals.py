"""The eventlet worker: signals, heartbeat, and how it ends."""

import contextlib
import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from environments import EVENTLET_WORKER
from exchange import read_all
from load import request
from processes import await_, runs, worker_pid
from servers import gunicorn

BOOTING = r"\[(\d+)\] \[INFO\] Booting worker"
HOLD = b"GET /hold HTTP/1.0\r\n\r\n"


@pytest.fixture
def serve(dsn):
    """`servers.gunicorn` with the eventlet worker, and a database."""

    def serve(app, *options):
        options = ("-k", EVENTLET_WORKER, *options)
        return gunicorn(app, *options, env={"DSN": dsn})

    return serve


@pytest.fixture
def write_conf(tmp_path):
    """Write a configuration for gunicorn, return the options that name it."""

    def write_conf(text):
        path = tmp_path / "conf.py"
        path.write_text(text)
        return "-c", str(path)

    return write_conf


def test_quit(serve, write_conf):
    """SIGQUIT ends the worker without waiting for the request in flight."""
    conf = write_conf("def worker_int(worker): worker.log.info('worker_int')")
    with (
        serve("gate_app:app", *conf) as server,
        socket.create_connection(server.address) as client,
    ):
        client.sendall(HOLD)
        server.await_line("holding")
        start = time.monotonic()
        assert server.stop(signal.SIGQUIT) == 0
        assert time.monotonic() - start < 25  # --graceful-timeout is 30
        assert server.matches("worker_int")
        assert not server.matches("Traceback|exited with code")


def test_stop_accepting(serve):
    """A worker that was told to stop takes no further clients while it finishes."""
    with (
        serve("gate_app:app") as server,
        socket.create_connection(server.address) as client,
    ):
        client.sendall(HOLD)
        server.await_line("holding")
        server.popen.terminate()
        await_(lambda: refused(server.address))
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):  # the client it has is kept
            client.recv(1)


KEPT = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"


@contextlib.contextmanager
def kept_alive(server, wrap=lambda client: client):
    """A connection that has carried one request and is kept for the next."""
    with wrap(socket.create_connection(server.address, timeout=30)) as client:
        client.sendall(KEPT)
        answer = b""
        while not answer.endswith(b"hello\n"):
            answer += client.recv(1 << 16)
        assert b"keep-alive" in answer
        yield client


LONG = ("--keep-alive=300", "--graceful-timeout=300")


def test_stop_with_idle_clients(serve):
    """Idle keep-alive connections end with the worker."""
    with (
        serve("http_app:app", *LONG) as server,
        kept_alive(server) as one,
        kept_alive(server) as other,
    ):
        assert server.stop() == 0
        assert [one.recv(1), other.recv(1)] == [b"", b""]
        assert not server.matches("Traceback|exited with code")


def test_stop_with_idle_tls_clients(serve, certificate, tls):
    """Idle connections over TLS end with the worker."""

    def wrap(client):
        return tls.wrap_socket(client, server_hostname="localhost")

    with (
        serve("http_app:app", *certificate, *LONG) as server,
        kept_alive(server, wrap),
    ):
        assert server.stop() == 0
        assert not server.matches("Traceback|exited with code")


def test_stop_within_a_request(serve):
    """A request that has partially arrived when the worker stops is answered."""
    with serve("gate_app:app", *LONG) as server, kept_alive(server) as client:
        client.sendall(KEPT[:10])
        await_(lambda: all_is_read(client))
        server.popen.terminate()
        await_(lambda: refused(server.address))
        client.sendall(KEPT[10:])
        assert read_all(client).startswith(b"HTTP/1.1 200 OK")
        assert server.wait() == 0


def all_is_read(client):
    """Return whether the server, on this machine, has read what *client* has sent."""
    mine, other = (f"{client.getsockname()[1]:04X}", f"{client.getpeername()[1]:04X}")
    queues = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queue, *_ = line.split()
        queues[local[-4:], remote[-4:]] = queue.split(":")
    unsent, _ = queues[mine, other]
    _, unread = queues[other, mine]
    return int(unsent, 16) == int(unread, 16) == 0


def refused(address):
    """Return whether nobody listens there."""
    try:
        socket.create_connection(address).close()
    except ConnectionRefusedError:
        return True
    return False


def test_graceful_timeout(serve):
    """A request that takes too long after the end is killed, not answered."""
    options = ("--max-requests=1", "--graceful-timeout=1")
    with (
        serve("gate_app:app", *options) as server,
        socket.create_connection(server.address) as client,
    ):
        pid = worker_pid(server)
        client.sendall(HOLD)
        server.await_line(rf"\[{pid}\] \[WARNING\] Worker graceful timeout")
        server.await_line("let go")
        server.await_line(rf"Worker exiting \(pid: {pid}\)")
        assert read_all(client) == b""
        assert not server.matches("Traceback|exited with code")


def test_stop_while_it_boots(serve, tmp_path, monkeypatch):
    """A worker that gets SIGTERM while it imports the application stops."""
    (tmp_path / "slow_app.py").write_text(
        "import time\n"
        "print('importing', flush=True)\n"
        "time.sleep(0.5)\n"
        "def app(environ, start_response): raise AssertionError\n"
    )
    with serve("slow_app:app", f"--pythonpath={tmp_path}") as server:
        server.await_line("importing")
        start = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - start < 25  # --graceful-timeout is 30
        assert not server.matches("was sent")


def test_parent_dies(serve, active):
    """A worker whose master was killed finishes the query in flight and ends."""
    with serve("flask_app:app") as server, ThreadPoolExecutor(1) as pool:
        pid = worker_pid(server)
        answer = pool.submit(request, f"{server.url}/sleep/2.375")
        await_(lambda: active("select pg_sleep(2.375)"))
        server.popen.kill()
        assert json.loads(answer.result().body) == {"slept": 2.375}
        await_(lambda: not runs(pid))
        assert server.matches(r"Parent changed, shutting down: <Worker")


def test_reopen_log(serve, tmp_path):
    """SIGUSR1 makes the worker reopen its log, also during a request."""
    log, old = tmp_path / "access.log", tmp_path / "old"
    options = (f"--access-logfile={log}",)
    with (
        serve("gate_app:app", *options) as server,
        socket.create_connection(server.address) as client,
    ):
        client.sendall(HOLD)
        server.await_line("holding")
        request(f"{server.url}/hello")
        await_(lambda: log.read_text())
        log.rename(old)
        os.kill(worker_pid(server), signal.SIGUSR1)
        await_(log.exists)
        request(f"{server.url}/hello")
        await_(lambda: log.read_text())
        assert len(old.read_text().splitlines()) == 1
        assert len(log.read_text().splitlines()) == 1


def test_heartbeat(serve):
    """A worker that only waits sends its heartbeat."""
    with serve("http_app:app", "--timeout=8") as server:
        assert request(f"{server.url}/sleep/10").error is None
        assert len(server.matches(BOOTING)) == 1


def test_stuck(serve, tmp_path):
    """A worker that stands still is replaced."""
    (tmp_path / "stuck_app.py").write_text(
        "import eventlet.patcher\n"
        "from http_app import app as others\n"
        "blocking_sleep = eventlet.patcher.original('time').sleep\n"
        "def app(environ, start_response):\n"
        "    if environ['PATH_INFO'] == '/stuck': blocking_sleep(60)\n"
        "    return others(environ, start_response)\n"
    )
    options = ("--timeout=6", f"--pythonpath={tmp_path}")
    with serve("stuck_app:app", *options) as server:
        pid = worker_pid(server)
        request(f"{server.url}/stuck", timeout=60)
        server.await_line(rf"WORKER TIMEOUT \(pid:{pid}\)")
        server.await_line(BOOTING, count=2)
        assert request(f"{server.url}/hello").error is None


def test_max_requests(serve):
    """A worker exits after max_requests requests, and a new one serves."""
    with serve("status_app:app", "--max-requests=5") as server:
        seen = []
        while len(set(seen)) < 3:
            answer = request(server.url)
            if not answer.error:  # the worker may have left with the request
                seen.append(json.loads(answer.body)["pid"])
        assert seen.count(seen[0]) >= 5
        assert len(server.matches("Autorestarting worker after current request")) >= 2
        assert not server.matches("exited with code|was sent")
