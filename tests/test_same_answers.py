"""The eventlet worker answers as gunicorn's gevent worker does, to the byte."""

import re

import pytest
from environments import EVENTLET_WORKER, VERSIONS, python_with_gunicorn
from exchange import exchange, without_date
from servers import gunicorn

HOST = b"Host: example.org\r\n"
END = b"\r\n"


def request(line, *headers, body=b""):
    """Return a request's bytes."""
    fields = b"".join(header + b"\r\n" for header in headers)
    return line + b"\r\n" + HOST + fields + END + body


def chunked(*chunks, trailer=b""):
    """Return a body in chunks."""
    pieces = [b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks]
    return b"".join(pieces) + b"0\r\n" + trailer + b"\r\n"


CHUNKED = b"Transfer-Encoding: chunked"
GET = b"GET %s HTTP/1.1"
POST = b"POST %s HTTP/1.1"
LARGE = bytes(range(256)) * 4096

# What is sent, in parts between which an answer is awaited, and the statuses of
# the answers. Some of them depend on the version of gunicorn.
EXCHANGES = {
    "get": ([request(GET % b"/hello")], b"200"),
    "environ": (
        [request(GET % b"/told/a%20b?c=d%26", b"X-Twice: 1", b"X-Twice: 2")],
        b"200",
    ),
    "head": ([request(b"HEAD /hello HTTP/1.1")], b"200"),
    "head of a stream": ([request(b"HEAD /stream HTTP/1.1")], b"200"),
    "head of a file": ([request(b"HEAD /file HTTP/1.1")], b"200"),
    "204": ([request(GET % b"/status/204")], b"204"),
    "304": ([request(GET % b"/status/304")], b"304"),
    "large post": (
        [request(POST % b"/echo", b"Content-Length: %d" % len(LARGE), body=LARGE)],
        b"200",
    ),
    "chunked post": (
        [request(POST % b"/echo", CHUNKED, body=chunked(b"one", LARGE, b"three"))],
        b"200",
    ),
    "chunked post in lines": (
        [request(POST % b"/lines", CHUNKED, body=chunked(b"one\ntw", b"o\nthree"))],
        b"200",
    ),
    "chunked post with a trailer": (
        [request(POST % b"/echo", CHUNKED, body=chunked(b"1", trailer=b"X: y\r\n"))],
        b"200",
    ),
    "bad chunk": ([request(POST % b"/echo", CHUNKED, body=b"zz\r\n")], b"(400)?"),
    "post that nobody reads": (
        [request(POST % b"/hello", b"Content-Length: 5", body=b"12345")],
        b"200",
    ),
    "body cut short": (
        [request(POST % b"/echo", b"Content-Length: 10", body=b"12345")],
        b"[245]00",
    ),
    "bad request line": ([b"NONSENSE\r\n\r\n"], b"400"),
    "bad method": ([request(b"ge-t(/) / HTTP/1.1")], b"400"),
    "bad version": ([request(b"GET /hello HTTP/9.9")], b"400"),
    "bad header": ([request(GET % b"/hello", b"no colon")], b"400"),
    "folded header": ([request(GET % b"/hello", b"X: 1\r\n 2")], b"400"),
    "long request line": ([request(GET % (b"/" + b"a" * 5000))], b"4(00|14)"),
    "oversized header": ([request(GET % b"/hello", b"X: " + b"a" * 9000)], b"431"),
    "too many headers": ([request(GET % b"/hello", *[b"X: 1"] * 101)], b"431"),
    "two lengths": (
        [request(POST % b"/echo", b"Content-Length: 3", CHUNKED, body=chunked(b"123"))],
        b"400",
    ),
    "negative length": ([request(POST % b"/echo", b"Content-Length: -1")], b"400"),
    "unknown transfer coding": (
        [request(POST % b"/echo", b"Transfer-Encoding: rot13")],
        b"[45]0[01]",
    ),
    "pipelined pair": (
        [request(GET % b"/stream") + request(GET % b"/hello")],
        b"200 200",
    ),
    "pipelined after a body that nobody reads": (
        [
            request(POST % b"/hello", b"Content-Length: 5", body=b"12345")
            + request(GET % b"/hello")
        ],
        b"200 200",
    ),
    "close": (
        [
            request(GET % b"/hello", b"Connection: close")
            + request(GET % b"/never-served")
        ],
        b"200",
    ),
    "HTTP/1.0": ([b"GET /stream HTTP/1.0\r\n\r\n"], b"200"),
    "HTTP/1.0, kept alive": (
        [b"GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"] * 2,
        b"200 200",
    ),
    "100-continue": (
        [
            request(POST % b"/echo", b"Content-Length: 5", b"Expect: 100-continue"),
            b"12345",
        ],
        b"100 200",
    ),
    "unknown expectation": (
        [request(GET % b"/hello", b"Expect: the-unexpected")],
        b"(200|417)",
    ),
    "upgrade": (
        [request(GET % b"/hello", b"Connection: upgrade", b"Upgrade: websocket")],
        b"200",
    ),
    "options": ([request(b"OPTIONS * HTTP/1.1")], b"404"),
    "absolute form": ([request(GET % b"http://example.org/told")], b"200"),
    "raises before the first byte": ([request(GET % b"/fail")], b"500"),
    "raises after the first byte": ([request(GET % b"/fail_late")], b"200"),
    "close() is called": (
        [request(GET % b"/stream") + request(GET % b"/closed")],
        b"200 200",
    ),
    "close() is called on error": (
        [request(b"HEAD /stream HTTP/1.1") + request(GET % b"/closed")],
        b"200 200",
    ),
    "begins twice": ([request(GET % b"/twice")], b"503"),
    "write()": ([request(GET % b"/write")], b"200"),
    "file": ([request(GET % b"/file")], b"200"),
    "rest of a file": ([request(GET % b"/file/10")], b"200"),
    "large answer": ([request(GET % b"/big/5000000")], b"200"),
    "shorter than announced": ([request(GET % b"/short")], b"200"),
    "longer than announced": ([request(GET % b"/long")], b"200"),
    "header with a line break": ([request(GET % b"/bad_header")], b"[45]00"),
}


@pytest.fixture(
    scope="module",
    params=[
        None,
        *(pytest.param(each, marks=pytest.mark.full) for each in VERSIONS),
    ],
    ids=lambda version: f"gunicorn-{version or 'installed'}",
)
def servers(request):
    """The same application under both workers, in the same gunicorn."""
    python = python_with_gunicorn(request.param)
    with (
        gunicorn("http_app:app", "-k", "gevent", python=python) as gevent,
        gunicorn("http_app:app", "-k", EVENTLET_WORKER, python=python) as eventlet,
    ):
        yield gevent, eventlet


@pytest.mark.parametrize("name", EXCHANGES)
def test_same_answer(servers, name):
    """Both workers answer with the same status, headers (except Date) and body."""
    parts, statuses = EXCHANGES[name]
    gevent, eventlet = [
        without_date(exchange(server.address, *parts)) for server in servers
    ]
    found = re.findall(rb"^HTTP/1\.[01] (\d+) ", gevent, re.MULTILINE)
    assert re.fullmatch(statuses, b" ".join(found)), gevent
    assert eventlet == gevent
