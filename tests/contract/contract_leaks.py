"""Waiting again and again leaves nothing behind, neither in C nor in Python."""

import gc
import os
import sys

import psycopg2
import pytest
from psycopg2.extensions import POLL_OK, POLL_READ

import psycogreen
from psycogreen._wait import epoll
from psycogreen._wait.epoll import EpollSet
from psycogreen._wait.twin import Entry, entries

GREENLETS = 50


class Answered:
    """Stands in for a connection whose answer has always arrived."""

    def __init__(self):
        """Be readable."""
        self._fd = os.eventfd(1)
        self._states = self.states()

    def fileno(self):
        """Return the descriptor."""
        return self._fd

    def poll(self):
        """Return or raise what comes next."""
        return next(self._states)

    def states(self):
        """Yield what poll() returns."""
        while True:
            yield POLL_READ
            yield POLL_OK

    def close(self):
        """Close the descriptor."""
        os.close(self._fd)


class Broken(Answered):
    """Stands in for a connection whose server ends the session during the wait."""

    def poll(self):
        """Return the next state, or raise the error of an ended session."""
        state = super().poll()
        if state == POLL_OK:
            raise psycopg2.OperationalError
        return state


def counts():
    """Return the number of objects, and the references to some permanent objects."""
    gc.collect()
    staying = [None, POLL_OK, POLL_READ, Entry, EpollSet, *epoll._sets]
    return [sys.getallocatedblocks(), *map(sys.getrefcount, staying)]


def leaked(work):
    """Return how many objects, or references, there are after *work*, but not before."""
    work()  # makes the objects that are made once and kept
    before = counts()
    work()
    return max(after - former for after, former in zip(counts(), before, strict=True))


def answered_waits_leak_nothing(green, waits):
    """Wait so often for connections that are answered, and count what is left."""

    def wait_often(conn, times):
        for _ in range(times):
            green.callback(conn)

    def work():
        conns = [Answered() for _ in range(GREENLETS)]
        for task in [
            green.spawn(wait_often, conn, waits // GREENLETS) for conn in conns
        ]:
            green.wait(task)
        for conn in conns:
            conn.close()
            entries.pop(conn.fileno(), None)

    before = psycogreen.status().waits
    assert leaked(work) < 100
    assert psycogreen.status().waits - before >= 2 * waits
    assert psycogreen.status().waiting == 0


def test_answers(green):
    """Many waits that are answered leave no object behind."""
    answered_waits_leak_nothing(green, 100_000)


@pytest.mark.full
def test_very_many_answers(green):
    """A million waits in C, or 200,000 in Python, leave no object behind."""
    is_compiled = psycogreen.status().compiled
    answered_waits_leak_nothing(green, 1_000_000 if is_compiled else 200_000)


def test_errors(green):
    """Waits that end with an error of poll() leave no object behind."""

    def work():
        conn = Broken()
        for _ in range(5_000):
            with pytest.raises(psycopg2.OperationalError):
                green.callback(conn)
        conn.close()
        entries.pop(conn.fileno(), None)

    assert leaked(work) < 100


def test_refusals(green, connect):
    """Waits that are refused, because another greenlet waits, leave no object behind."""
    conn = connect()
    task = green.spawn(conn.cursor().execute, "select pg_sleep(60)")
    green.sleep(0.1)

    def work():
        for _ in range(2_000):
            with pytest.raises(psycopg2.ProgrammingError, match="waits for this"):
                green.callback(conn)

    try:
        assert leaked(work) < 100
    finally:
        green.kill(task)


def test_kills(green):
    """Waits whose greenlets are killed leave no object behind."""
    psycogreen.unpatch_psycopg()
    psycogreen.patch_psycopg(cancel_interrupted=False)
    conn = Answered()
    os.eventfd_read(conn.fileno())  # no answer any more

    def work():
        for _ in range(1_000):
            task = green.spawn(green.callback, conn)
            green.sleep(0)
            assert psycogreen.status().waiting == 1
            green.kill(task)
            green.sleep(0)
            conn.poll()

    assert leaked(work) < 100
    conn.close()
    entries.pop(conn.fileno(), None)
