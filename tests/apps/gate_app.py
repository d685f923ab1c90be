"""An application whose requests wait for each other, and end when another one allows it."""

import threading
import time

from http_app import ANSWERS, respond

gate = threading.Event()
inside = most = 0


def crowd(environ, start_response):
    """Stay a while; return the maximum number of concurrent requests."""
    global inside, most
    inside += 1
    most = max(most, inside)
    time.sleep(0.2)
    inside -= 1
    return respond(start_response, str(most).encode())


def drip(environ, start_response):
    """Answer one line, and another one when the gate is opened."""
    gate.clear()
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"one\n"
    gate.wait()
    yield b"two\n"


def opened(environ, start_response):
    """Open the gate."""
    gate.set()
    return respond(start_response, b"opened\n")


def hold(environ, start_response):
    """Never answer; print how it ended."""
    print("holding", flush=True)
    try:
        threading.Event().wait()
    finally:
        time.sleep(0.1)  # as a rollback would
        print("let go", flush=True)


OWN = {"crowd": crowd, "drip": drip, "open": opened, "hold": hold}


def app(environ, start_response):
    """Answer as the first part of the path says, as http_app does."""
    name, *rest = environ["PATH_INFO"].strip("/").split("/")
    return (OWN | ANSWERS)[name](environ, start_response, *rest)
