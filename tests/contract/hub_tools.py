"""What tests of the hub and of waits share with their scripts.

Scripts import this module. It does not import pytest, which takes as long as all else
that a script needs.
"""

import _thread
import gc
import os
import time
from pathlib import Path

from psycogreen._wait import native

native_sleep = native.original("time", "sleep")


def query(conn, what="1 from pg_sleep(0.005)"):
    """Return what a query returns; by default it surely waits."""
    cursor = conn.cursor()
    cursor.execute(f"select {what}")
    return cursor.fetchone()[0]


def await_(green, condition, pause=None):
    """Wait until the condition holds."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        (pause or green.sleep)(0.01)


def descriptors():
    """Return how many descriptors are open."""
    return len(os.listdir("/proc/self/fd"))


def in_hub(green, function):
    """Return what *function* returns or raises in the hub."""
    outcome = []

    def work():
        try:
            outcome.append(function())
        except BaseException as ex:
            outcome.append(ex)

    green.call_in_hub(work)
    await_(green, lambda: outcome)
    return outcome[0]


def in_threads(function, number):
    """Call *function* in native threads, one after the other; wait for their ends."""
    for _ in range(number):
        ended = native.original("_thread", "allocate_lock")()
        ended.acquire()
        outcome = []

        def work(ended=ended, outcome=outcome):
            try:
                outcome.append(_thread.get_native_id())
                outcome.append(function())
            finally:
                ended.release()

        native.start_thread(work)
        while not ended.acquire(timeout=0.01):
            pass
        assert len(outcome) == 2
        # Its loop is closed after that.
        while Path(f"/proc/self/task/{outcome[0]}").exists():
            native_sleep(0.001)


def back(count, before):
    """Wait until *count* is at most what it was: threads end when they like to."""
    deadline = time.monotonic() + 30
    while count() > before and time.monotonic() < deadline:
        gc.collect()
        native_sleep(0.01)
    return count() <= before


def own_leak(function):
    """Return how many descriptors the framework itself leaves open in *function*."""
    gc.collect()
    before = descriptors()
    function()
    gc.collect()
    return max(descriptors() - before, 0)
