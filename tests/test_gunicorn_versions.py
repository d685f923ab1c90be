"""The eventlet worker in each gunicorn, old and new, in an environment of its own."""

import hashlib
import json
import os
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection, HTTPSConnection

import pytest
from conftest import TESTS
from environments import EVENTLET_WORKER, VERSIONS, python_with_gunicorn
from exchange import exchange, read_all
from load import request, requests
from overlap import assert_at_once
from processes import await_, memory, open_files, peak_memory, worker_pid
from servers import gunicorn

CONF = ("-c", "python:psycogreen.integrations.gunicorn_conf")
WORKER = ("-k", EVENTLET_WORKER)
INSTALLED = r"\[INFO\] psycogreen: eventlet wait callback installed"

pytestmark = pytest.mark.full


@pytest.fixture(scope="module", params=VERSIONS)
def version(request):
    """The major version of gunicorn."""
    return request.param


@pytest.fixture
def serve(version, dsn):
    """`servers.gunicorn` of that version, with the database in its environment."""
    python = python_with_gunicorn(version)

    def serve(app, *options, **env):
        return gunicorn(app, *options, env={"DSN": dsn, **env}, python=python)

    return serve


def test_version(serve, version):
    """The environment has the version that it is named after."""
    with serve("http_app:app", *WORKER) as server:
        server.await_line(rf"Starting gunicorn {version}\.")


def assert_50_at_once(server):
    """Assert that 50 requests of 0.2 s go on side by side."""
    requests(50, f"{server.url}/sleep/0.0")  # opens the connections
    results = requests(50, f"{server.url}/sleep/0.2")
    assert [result.error for result in results] == [None] * 50
    assert_at_once(results, one_by_one=10)


@pytest.mark.parametrize("options", [WORKER, (*WORKER, *CONF)], ids=["worker", "both"])
def test_concurrent_queries(serve, options):
    """50 queries run concurrently, and the callback is installed once."""
    with serve("flask_app:app", *options) as server:
        assert_50_at_once(server)
        assert len(server.matches(INSTALLED)) == 1


@pytest.mark.parametrize("version", ["23", "25"], indirect=True)
def test_worker_of_gunicorn(serve):
    """Gunicorn's own eventlet worker becomes green too."""
    with serve("flask_app:app", "-k", "eventlet", *CONF) as server:
        assert_50_at_once(server)
        assert len(server.matches(INSTALLED)) == 1


def test_tls(serve, certificate, tls):
    """An encrypted request is answered, and another one on the same connection."""
    with (
        serve("http_app:app", *WORKER, *certificate) as server,
        closing(HTTPSConnection(*server.address, context=tls)) as client,
    ):
        for _ in range(2):
            client.request("GET", "/told")
            assert b"wsgi.url_scheme='https'" in client.getresponse().read()


@pytest.mark.parametrize("version", ["25", "26", "27"], indirect=True)
def test_http2(serve, version, certificate):
    """Two concurrent HTTP/2 requests are answered, where gunicorn offers HTTP/2."""
    options = (*WORKER, *certificate, "--http-protocols=h2,h1")
    with serve("http_app:app", *options) as server:
        result = subprocess.run(
            [
                python_with_gunicorn(version),
                str(TESTS / "http2_client.py"),
                str(server.address[1]),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout) == {
            "1": {"status": "200", "body": "hello\n"},
            "3": {"status": "200", "length": 1_000_000},
        }


@pytest.fixture(scope="module")
def large_file(tmp_path_factory):
    """A file of 100 MB, and its digest."""
    path = tmp_path_factory.mktemp("file") / "large"
    piece = os.urandom(1_000_000)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(100):
            file.write(piece)
            digest.update(piece)
    return path, digest.hexdigest()


def test_large_file(serve, large_file):
    """A file of 100 MB arrives complete, and takes the worker almost no memory."""
    path, digest = large_file
    with (
        serve("http_app:app", *WORKER, FILE=str(path)) as server,
        closing(HTTPConnection(*server.address)) as client,
    ):
        client.request("GET", "/hello")
        client.getresponse().read()
        before = memory(worker_pid(server))
        client.request("GET", "/file")
        with client.getresponse() as response:
            received = hashlib.file_digest(response, "sha256")
        assert received.hexdigest() == digest
        assert peak_memory(worker_pid(server)) - before < 10_000_000


def test_graceful_stop(serve, active):
    """A worker that is told to stop finishes the query in flight and exits with 0."""
    with serve("flask_app:app", *WORKER) as server, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(request, f"{server.url}/sleep/2.125")
        await_(lambda: active("select pg_sleep(2.125)"))
        assert server.stop() == 0
        assert json.loads(answer.result().body) == {"slept": 2.125}
        # gunicorn tells of every other way for a worker to end.
        assert not server.matches("exited with code|was sent")


def test_keep_alive(serve):
    """10,000 requests on 100 connections leave no file descriptor behind."""
    with serve("http_app:app", *WORKER) as server:
        pid = worker_pid(server)
        exchange(server.address, b"GET /hello HTTP/1.0\r\n\r\n")
        before = open_files(pid)
        with ThreadPoolExecutor(4) as pool:
            answered = pool.map(hundred_requests, [server.address] * 100)
        assert sum(answered) == 10_000
        await_(lambda: open_files(pid) == before)


def hundred_requests(address):
    """Make 100 requests on one connection; return how many were answered well."""
    answers = []
    with closing(HTTPConnection(*address)) as client:
        client.connect()
        client.auto_open = False  # not another connection, should it be closed
        for _ in range(100):
            client.request("GET", "/hello")
            answers.append(client.getresponse().read())
    return answers.count(b"hello\n")


def test_slow_reader(serve):
    """A client that reads a large answer slowly does not delay others."""
    size = 50_000_000
    with (
        serve("http_app:app", *WORKER) as server,
        socket.create_connection(server.address) as client,
    ):
        client.sendall(b"GET /big/%d HTTP/1.0\r\n\r\n" % size)
        head = client.recv(1)  # the answer is under way, and stops here
        results = requests(20, f"{server.url}/hello", timeout=10)
        assert [result.error for result in results] == [None] * 20
        answer = head + read_all(client)
        assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
        assert len(answer.partition(b"\r\n\r\n")[2]) == size
