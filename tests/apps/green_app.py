"""An application that waits in every way, beside a ticker.

While the ticker ticks, the worker can serve other requests. The waits are those of the
standard library, and of objects that gunicorn and logging made before the fork.
"""

import json
import logging
import os
import queue
import select
import selectors
import socket
import subprocess
import threading
import time

from ticker import Ticker

SECONDS = 0.2


def time_sleep():
    """Sleep."""
    time.sleep(SECONDS)


def event_wait():
    """Wait for an event that nobody sets."""
    threading.Event().wait(SECONDS)


def lock_acquire():
    """Wait for a lock that another thread has."""
    _wait_for_a_thread_with(threading.Lock())


def condition_wait():
    """Wait for a condition that nobody notifies."""
    condition = threading.Condition()
    with condition:
        condition.wait(SECONDS)


def thread_join():
    """Wait for a thread."""
    thread = threading.Thread(target=time.sleep, args=(SECONDS,))
    thread.start()
    thread.join()


def queue_get():
    """Wait for an empty queue."""
    _expect_empty(queue.Queue())


def simple_queue_get():
    """Wait for an empty queue of the simple kind."""
    _expect_empty(queue.SimpleQueue())


def select_select():
    """Wait for a socket with select()."""
    with _silent_socket() as silent:
        select.select([silent], [], [], SECONDS)


def selector_select():
    """Wait for a socket with a selector."""
    with _silent_socket() as silent, selectors.DefaultSelector() as selector:
        selector.register(silent, selectors.EVENT_READ)
        selector.select(SECONDS)


def socket_recv():
    """Wait for a socket."""
    with _silent_socket() as silent:
        silent.settimeout(SECONDS)
        try:
            silent.recv(1)
        except TimeoutError:
            return
    raise AssertionError


def os_read():
    """Wait for a pipe."""
    with subprocess.Popen(["sleep", str(SECONDS)], stdout=subprocess.PIPE) as process:
        assert os.read(process.stdout.fileno(), 1) == b""


def subprocess_run():
    """Wait for a process."""
    subprocess.run(["sleep", str(SECONDS)], check=True)


def logging_lock():
    """Wait for the lock of gunicorn's log, which another thread has."""
    [handler] = logging.getLogger("gunicorn.error").handlers
    _wait_for_a_thread_with(handler.lock)


def _wait_for_a_thread_with(lock):
    def hold():
        with lock:
            held.set()
            time.sleep(SECONDS)

    held = threading.Event()
    threading.Thread(target=hold).start()
    held.wait()
    start = time.monotonic()
    with lock:
        assert time.monotonic() - start > SECONDS / 2, "the lock locks nobody out"


def _expect_empty(empty):
    try:
        empty.get(timeout=SECONDS)
    except queue.Empty:
        return
    raise AssertionError


def _silent_socket():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


WAITS = {
    function.__name__: function
    for function in (
        time_sleep,
        event_wait,
        lock_acquire,
        condition_wait,
        thread_join,
        queue_get,
        simple_queue_get,
        select_select,
        selector_select,
        socket_recv,
        os_read,
        subprocess_run,
        logging_lock,
    )
}


def app(environ, start_response):
    """Wait in each way; return how many times the ticker ticked meanwhile."""
    ticker = Ticker(time.sleep)
    threading.Thread(target=ticker.run, daemon=True).start()
    ticks = {}
    for name, wait in WAITS.items():
        ticker.reset()
        wait()
        ticks[name] = ticker.ticks
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(ticks).encode()]
