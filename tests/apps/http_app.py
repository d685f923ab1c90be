"""An application that answers in every way that an HTTP server must handle."""

import hashlib
import os
import sys
import time

TOLD = [
    "REQUEST_METHOD",
    "SCRIPT_NAME",
    "PATH_INFO",
    "QUERY_STRING",
    "SERVER_NAME",
    "SERVER_PROTOCOL",
    "CONTENT_TYPE",
    "CONTENT_LENGTH",
    "REMOTE_ADDR",
    "RAW_URI",
    "HTTP_X_TWICE",
    "wsgi.version",
    "wsgi.url_scheme",
    "wsgi.multithread",
    "wsgi.multiprocess",
    "wsgi.run_once",
    "wsgi.input_terminated",
]


class Lines:
    """An iterable response that knows whether it has been closed."""

    closed = False

    def __iter__(self):
        """Give two lines."""
        yield b"one\n"
        yield b"two\n"

    def close(self):
        """Make a note of it."""
        Lines.closed = True


def app(environ, start_response):
    """Answer as the first part of the path says."""
    name, *rest = environ["PATH_INFO"].strip("/").split("/")
    if name not in ANSWERS:
        return respond(start_response, b"no such answer\n", "404 Not Found")
    return ANSWERS[name](environ, start_response, *rest)


def respond(start_response, body, status="200 OK"):
    """Answer with a body whose length is announced."""
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
    start_response(status, headers)
    return [body]


def hello(environ, start_response):
    """Say hello."""
    return respond(start_response, b"hello\n")


def status(environ, start_response, code):
    """Answer without a body."""
    start_response(f"{code} As Asked", [("ETag", '"tag"')])
    return []


def echo(environ, start_response):
    """Tell the length and the digest of what was sent."""
    body = environ["wsgi.input"].read()
    told = f"{len(body)} {hashlib.sha256(body).hexdigest()}\n"
    return respond(start_response, told.encode())


def lines(environ, start_response):
    """Tell how many lines were sent, and the last one."""
    sent = list(environ["wsgi.input"])
    return respond(start_response, f"{len(sent)} {sent[-1]!r}\n".encode())


def told(environ, start_response, *rest):
    """Tell what the server has told."""
    pairs = [f"{name}={environ.get(name)!r}\n" for name in TOLD]
    return respond(start_response, "".join(pairs).encode())


def stream(environ, start_response):
    """Answer in two pieces of unannounced length, and keep track of close()."""
    Lines.closed = False
    start_response("200 OK", [("Content-Type", "text/plain")])
    return Lines()


def closed(environ, start_response):
    """Answer whether the last streamed answer was closed."""
    return respond(start_response, f"{Lines.closed}\n".encode())


def write(environ, start_response):
    """Answer through the callable that WSGI calls legacy."""
    put = start_response("200 OK", [("Content-Length", "8")])
    put(b"one\n")
    return [b"two\n"]


def file(environ, start_response, start="0"):
    """Answer with a file, from the byte *start* on."""
    opened = open(os.environ.get("FILE", __file__), "rb")  # noqa: SIM115
    opened.seek(int(start))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return environ["wsgi.file_wrapper"](opened)


def big(environ, start_response, size):
    """Answer with that many bytes, all at once."""
    return respond(start_response, b"x" * int(size))


def fail(environ, start_response):
    """Raise before anything is answered."""
    msg = "before the first byte"
    raise RuntimeError(msg)


def fail_late(environ, start_response):
    """Raise when a part is answered."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"one\n"
    msg = "after the first byte"
    raise RuntimeError(msg)


def short(environ, start_response):
    """Announce more than there is."""
    start_response("200 OK", [("Content-Length", "100")])
    return [b"short\n"]


def long(environ, start_response):
    """Send more than announced."""
    start_response("200 OK", [("Content-Length", "3")])
    return [b"long\n"]


def bad_header(environ, start_response):
    """Answer with a header that must not be sent."""
    start_response("200 OK", [("X-Bad", "one\r\nX-Injected: two")])
    return [b""]


def twice(environ, start_response):
    """Begin an answer, then begin an error's instead."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    try:
        raise RuntimeError
    except RuntimeError:
        start_response("503 Sorry", [("Content-Length", "6")], sys.exc_info())
    return [b"sorry\n"]


def sleep(environ, start_response, seconds):
    """Take some time."""
    time.sleep(float(seconds))
    return respond(start_response, b"slept\n")


ANSWERS = {
    function.__name__: function
    for function in (
        hello,
        status,
        echo,
        lines,
        told,
        stream,
        closed,
        write,
        file,
        big,
        fail,
        fail_late,
        short,
        long,
        bad_header,
        twice,
        sleep,
    )
}
