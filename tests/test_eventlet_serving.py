"""The eventlet worker: clients and their sockets."""

import hashlib
import os
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from http.client import HTTPConnection, HTTPSConnection

import pytest
from environments import EVENTLET_WORKER
from exchange import exchange, read_all
from load import request, requests
from processes import await_, memory, open_files, peak_memory, worker_pid
from servers import gunicorn

HELLO = b"GET /hello HTTP/1.0\r\n\r\n"
HOLD = b"GET /hold HTTP/1.0\r\n\r\n"


@pytest.fixture
def serve(dsn):
    """`servers.gunicorn` with the eventlet worker, and a database."""

    def serve(app, *options, **env):
        options = ("-k", EVENTLET_WORKER, *options)
        return gunicorn(app, *options, env={"DSN": dsn, **env})

    return serve


def unix_exchange(path, message):
    """Send a request to a Unix socket, return the answer."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(message)
        return read_all(client)


def test_every_socket(serve, tmp_path):
    """The worker serves all bound sockets: two ports and a Unix socket."""
    path = str(tmp_path / "socket")
    with serve("http_app:app", "--bind=127.0.0.1:0", f"--bind=unix:{path}") as server:
        [line] = server.await_line(r"Listening at: .*//.*:(\d+),.*//.*:(\d+),unix:")
        for port in line.groups():
            assert exchange(("127.0.0.1", int(port)), HELLO).endswith(b"hello\n")
        assert unix_exchange(path, HELLO).endswith(b"hello\n")


def test_worker_connections(serve):
    """worker_connections limits the clients of all sockets; further clients wait."""
    options = ("--bind=127.0.0.1:0", "--worker-connections=3")
    with serve("gate_app:app", *options) as server, ThreadPoolExecutor(10) as pool:
        [line] = server.await_line(r"Listening at: .*//.*:(\d+),.*//.*:(\d+) ")
        urls = [f"http://127.0.0.1:{port}/crowd" for port in line.groups()] * 5
        answers = list(pool.map(request, urls))
        assert [answer.error for answer in answers] == [None] * 10
        assert max(answer.body for answer in answers) == "3"


def test_worker_without_a_slot_leaves_clients_alone(serve):
    """A worker at its limit leaves new clients to another worker."""
    options = ("--workers=2", "--worker-connections=1")
    with (
        serve("gate_app:app", *options) as server,
        socket.create_connection(server.address) as client,
    ):
        server.await_line("callback installed", count=2)
        client.sendall(HOLD)
        server.await_line("holding")
        for _ in range(20):
            assert request(f"{server.url}/hello").error is None


def test_worker_with_a_slot_again(serve):
    """A worker serves a third client after another worker has taken its second one."""
    options = ("--workers=2", "--worker-connections=1")
    with serve("gate_app:app", *options) as server, ExitStack() as clients:
        server.await_line("callback installed", count=2)
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(request, f"{server.url}/sleep/1")
            while not slow.done():
                assert request(f"{server.url}/hello").error is None
        # Each has one slot, so that two clients need both.
        for count in 1, 2:
            client = socket.create_connection(server.address)
            clients.enter_context(client).sendall(HOLD)
            server.await_line("holding", count=count)


def test_streamed_answer(serve):
    """A piece that the application yields is sent immediately."""
    with serve("gate_app:app") as server, closing(connection(server)) as client:
        client.request("GET", "/drip")
        response = client.getresponse()
        assert response.readline() == b"one\n"
        assert request(f"{server.url}/open").error is None
        assert response.read() == b"two\n"


def connection(server):
    """Return an HTTP connection to the server."""
    return HTTPConnection(*server.address, timeout=30)


def test_slow_upload(serve, tmp_path):
    """A client that sends its body slowly does not delay others."""
    (tmp_path / "impatient_app.py").write_text(
        "import socket\n"
        "socket.setdefaulttimeout(0.1)  # not meant for clients\n"
        "from http_app import app\n"
    )
    body = os.urandom(100_000)
    head = b"POST /echo HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body)
    with serve("impatient_app:app", f"--pythonpath={tmp_path}") as server:
        with socket.create_connection(server.address) as client:
            client.sendall(head + body[:50_000])
            results = requests(5, f"{server.url}/sleep/0.3")
            assert [result.error for result in results] == [None] * 5
            client.sendall(body[50_000:])
            answer = read_all(client).decode()
        assert hashlib.sha256(body).hexdigest() in answer


@pytest.fixture(scope="module")
def large_file(tmp_path_factory):
    """A file of 50 MB, and its digest."""
    path = tmp_path_factory.mktemp("file") / "large"
    content = os.urandom(50_000_000)
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
def test_file_without_sendfile(serve, large_file, encrypted, certificate, tls):
    """Sending a file without sendfile(2) takes the worker almost no memory."""
    path, digest = large_file
    options = certificate if encrypted else ["--no-sendfile"]
    with serve("http_app:app", *options, FILE=str(path)) as server:
        if encrypted:
            client = HTTPSConnection(*server.address, context=tls)
        else:
            client = connection(server)
        with closing(client):
            client.request("GET", "/hello")
            client.getresponse().read()
            before = memory(worker_pid(server))
            client.request("GET", "/file")
            with client.getresponse() as response:
                received = hashlib.file_digest(response, "sha256")
            assert received.hexdigest() == digest
            assert peak_memory(worker_pid(server)) - before < 10_000_000


def test_large_answer(serve):
    """A large answer is sent without being copied."""
    size = 50_000_000
    with serve("http_app:app") as server:
        exchange(server.address, HELLO)
        before = memory(worker_pid(server))
        answer = exchange(server.address, b"GET /big/%d HTTP/1.0\r\n\r\n" % size)
        assert len(answer) > size
        assert peak_memory(worker_pid(server)) - before < 1.3 * size


def test_slow_reader_of_a_file(serve, large_file):
    """A client that reads a file slowly does not delay others."""
    path, digest = large_file
    with (
        serve("http_app:app", FILE=str(path)) as server,
        closing(connection(server)) as client,
    ):
        client.request("GET", "/file")
        with client.getresponse() as response:
            results = requests(5, f"{server.url}/hello")
            assert [result.error for result in results] == [None] * 5
            received = hashlib.file_digest(response, "sha256")
        assert received.hexdigest() == digest


CONF_WITH_A_CONTEXT = """
import ssl

context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain({certfile!r}, {keyfile!r})

def ssl_context(config, default):
    return context
"""


@pytest.mark.parametrize("way", ["options", "handshake on connect", "made before"])
def test_tls_clients_that_do_not_speak_it(serve, tmp_path, certificate, tls, way):
    """Clients that do not speak TLS are dropped, and others are served."""
    options = [*certificate, "--keep-alive=2", "--worker-connections=2"]
    if way == "handshake on connect":
        options.append("--do-handshake-on-connect")
    elif way == "made before":
        certfile, keyfile = (option.partition("=")[2] for option in certificate)
        path = tmp_path / "conf.py"
        path.write_text(CONF_WITH_A_CONTEXT.format(certfile=certfile, keyfile=keyfile))
        options += ["-c", str(path)]
    with serve("http_app:app", *options) as server:
        with (
            socket.create_connection(server.address),
            socket.create_connection(server.address) as silent,
        ):
            # They have both slots. A third one is served in the end.
            https_hello(server, tls)
            assert read_all(silent) == b""
        assert b"200 OK" not in exchange(server.address, HELLO)
        for _ in range(10):
            socket.create_connection(server.address).close()
        https_hello(server, tls)
        assert not server.matches("ERROR|Traceback"), server.output


def https_hello(server, tls):
    """Make an encrypted request, which must be answered."""
    client = HTTPSConnection(*server.address, context=tls, timeout=30)
    with closing(client):
        client.request("GET", "/hello")
        assert client.getresponse().read() == b"hello\n"


def leave_in_the_header(address):
    """Leave in the middle of the request's header."""
    with socket.create_connection(address) as client:
        client.sendall(b"GET /hello HT")


def leave_in_the_body(address):
    """Leave in the middle of the request's body."""
    with socket.create_connection(address) as client:
        client.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1")


def leave_in_the_answer(address):
    """Leave in the middle of the answer."""
    with socket.create_connection(address) as client:
        client.sendall(b"GET /big/5000000 HTTP/1.0\r\n\r\n")
        client.recv(1)


def leave_in_the_file(address):
    """Leave in the middle of a file."""
    with socket.create_connection(address) as client:
        client.sendall(b"GET /file HTTP/1.0\r\n\r\n")
        client.recv(1)


def leave_while_it_waits(address):
    """Leave while the application waits."""
    with socket.create_connection(address) as client:
        client.sendall(b"GET /sleep/0.1 HTTP/1.0\r\n\r\n")


@pytest.mark.parametrize(
    "leave",
    [
        leave_in_the_header,
        leave_in_the_body,
        leave_in_the_answer,
        leave_in_the_file,
        leave_while_it_waits,
    ],
)
def test_clients_that_leave(serve, large_file, leave):
    """Clients that disconnect leave no file descriptor open."""
    path, _ = large_file
    with serve("http_app:app", FILE=str(path)) as server:
        exchange(server.address, HELLO)
        before = open_files(worker_pid(server))
        for _ in range(50):
            leave(server.address)
        assert exchange(server.address, HELLO).endswith(b"hello\n")
        await_(lambda: open_files(worker_pid(server)) == before)
        assert not server.matches("ERROR|Traceback"), server.output


def test_client_that_leaves_during_a_query(serve, active):
    """If a client disconnects during a query, the query and the worker go on."""
    with serve("flask_app:app") as server:
        with socket.create_connection(server.address) as client:
            client.sendall(b"GET /sleep/1.625 HTTP/1.0\r\n\r\n")
            await_(lambda: active("select pg_sleep(1.625)"))
        await_(lambda: not active("select pg_sleep(1.625)"))
        assert request(f"{server.url}/sleep/0.0").error is None
        assert not server.matches("ERROR|Traceback"), server.output


def test_out_of_file_descriptors(serve, tmp_path):
    """A worker that is out of file descriptors serves again when clients have left."""
    path = tmp_path / "conf.py"
    path.write_text(
        "import resource\n"
        "keepalive = 60\n"
        "def post_worker_init(worker):\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
    )
    with serve("http_app:app", "-c", str(path)) as server:
        with ExitStack() as clients:
            for _ in range(60):
                clients.enter_context(socket.create_connection(server.address))
            server.await_line(
                r"\[ERROR\] psycogreen: cannot accept a client: .*Errno 24"
            )
        assert request(f"{server.url}/hello").error is None
        assert "Traceback" not in server.output


def test_websocket(serve):
    """The WebSockets of eventlet work, and end with the connection."""
    handshake = (
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        b"\r\n"
    )
    mask = b"\0\0\0\0"  # which masks nothing
    with serve("websocket_app:app", "--access-logfile=-") as server:
        with socket.create_connection(server.address, timeout=30) as client:
            client.sendall(handshake)
            assert re.match(rb"HTTP/1\.1 101 (.*\r\n)+\r\n$", client.recv(1 << 16))
            client.sendall(b"\x81\x85" + mask + b"hello")
            assert client.recv(1 << 16) == b"\x81\x05HELLO"
            client.sendall(b"\x88\x80" + mask)  # good-bye
            assert read_all(client).startswith(b"\x88")
        assert server.stop() == 0
        # gunicorn has not tried to answer as well.
        assert not server.matches("GET /|ERROR|Traceback"), server.output
