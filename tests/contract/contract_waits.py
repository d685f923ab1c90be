"""The wait callback itself: its limit, its interruption, its errors."""

import copy
import os
import pickle
import sys
import weakref
from contextlib import suppress
from functools import partial

import psycopg2
import pytest
from psycopg2.extensions import set_wait_callback

import psycogreen
from psycogreen._wait.twin import entries


def test_timeout(green, conn):
    """A wait beyond the limit raises, and psycopg2 closes the connection."""
    set_wait_callback(partial(green.callback, timeout=0.2))
    with (
        green.ticking(),
        pytest.raises(psycogreen.WaitTimeout, match=r"silent for 0\.2 seconds"),
    ):
        conn.cursor().execute("select pg_sleep(30)")
    assert conn.closed


def test_timeout_is_an_operational_error(green, conn):
    """A timeout of the callback is a psycopg2.OperationalError."""
    set_wait_callback(partial(green.callback, timeout=0.01))
    with pytest.raises(psycopg2.OperationalError):
        conn.cursor().execute("select pg_sleep(30)")


def test_timeout_below_a_millisecond(green, conn):
    """A limit shorter than the resolution of the loop's timers is only a timeout."""
    set_wait_callback(partial(green.callback, timeout=0.0004))
    with pytest.raises(psycogreen.WaitTimeout):
        conn.cursor().execute("select pg_sleep(30)")


def test_timeout_is_for_each_wait(green, conn):
    """The limit counts for each wait: a query that sends notices may take longer."""
    conn.autocommit = True
    set_wait_callback(partial(green.callback, timeout=2.5))
    conn.cursor().execute(
        "do $$ begin for n in 1..14 loop raise notice '%', n;"
        " perform pg_sleep(0.2); end loop; end $$"
    )
    assert len(conn.notices) == 14


@pytest.mark.parametrize("timeout", [None, -1, -0.5])
def test_no_timeout(green, conn, timeout):
    """A timeout of None or a negative number means no limit."""
    set_wait_callback(partial(green.callback, timeout=timeout))
    with green.ticking():
        conn.cursor().execute("select pg_sleep(0.1)")


def test_timeout_of_an_asynchronous_connection(green, dsn, connect):
    """An explicit wait has the limit too, and can be repeated after it."""
    holder = connect().cursor()
    holder.execute("select pg_advisory_lock(1)")
    conn = psycopg2.connect(dsn, async_=True)
    green.callback(conn, timeout=30)
    cursor = conn.cursor()
    cursor.execute("select 1, pg_advisory_lock(1)")
    with pytest.raises(psycogreen.WaitTimeout):
        green.callback(conn, timeout=0.1)
    holder.execute("select pg_advisory_unlock(1)")
    green.callback(conn)
    assert cursor.fetchone()[0] == 1
    conn.close()


def test_partial_stays(green):
    """Patching again keeps a limit that was set with functools.partial."""
    limited = partial(green.callback, timeout=1)
    set_wait_callback(limited)
    psycogreen.patch_psycopg()
    assert psycopg2.extensions.get_wait_callback() is limited
    assert psycogreen.status().framework == green.name


@pytest.mark.parametrize("state", [7, -1, "ready"])
def test_unknown_state(green, state):
    """An unknown state from poll() raises an error that shows it."""

    class Strange:
        def poll(self):
            return state

        def fileno(self):
            return -1

    with pytest.raises(psycopg2.OperationalError, match=repr(state)):
        green.callback(Strange())


def test_copies(green):
    """The callback can be copied and pickled like a function."""
    assert copy.deepcopy(green.callback) is green.callback
    assert pickle.loads(pickle.dumps(green.callback)) is green.callback


def test_as_a_function(green):
    """The callback in C has a name and weak references, and binds, like a function."""
    name = green.callback.__qualname__
    assert weakref.ref(green.callback)() is green.callback
    assert repr(green.callback).startswith(f"<function {name} at 0x")

    class Holder:
        callback = green.callback

    holder = Holder()
    assert Holder.callback is green.callback
    assert holder.callback.__self__ is holder
    assert holder.callback.__func__ is green.callback


def test_query_in_a_generator(green, connect):
    """A query in a generator leaves the exception that its caller handles alone."""
    conn, broken = connect(), connect()
    handled = []

    def work():
        handled.append(sys.exception())
        conn.cursor().execute("select pg_sleep(0.01)")
        yield
        handled.append(sys.exception())
        with suppress(green.Timeout), green.Timeout(0.05):
            broken.cursor().execute("select pg_sleep(60)")
        yield
        handled.append(sys.exception())

    going = work()
    for _ in range(2):
        try:
            raise ValueError
        except ValueError:
            next(going)
    assert next(going, None) is None
    assert isinstance(handled[0], ValueError)
    assert handled[2] is None
    assert isinstance(handled[1], ValueError)


def test_first_wait_in_a_generator(script):
    """A first wait, and one with a limit, leave the exception that a caller handles."""
    script(
        """
        from functools import partial

        def work():
            conn = psycopg2.connect(dsn)
            yield
            handled.append(sys.exception())
            with_limit = partial(green.callback, timeout=60)
            psycopg2.extensions.set_wait_callback(with_limit)
            conn.cursor().execute("select 1")
            yield
            handled.append(sys.exception())

        handled = []
        going = work()
        try:
            raise ValueError
        except ValueError:
            next(going)
        next(going)
        assert handled.pop() is None
        going = work()
        next(going)
        try:
            raise ValueError
        except ValueError:
            next(going)
        next(going, None)
        assert isinstance(handled[0], ValueError)
        assert handled[1] is None, handled[1]
        """
    )


def test_states_of_another_type(green):
    """poll() may return its state in any type of number."""
    states = iter([True, False])

    class Strange:
        def poll(self):
            return next(states)

        def fileno(self):
            return answered

    answered = os.eventfd(1)
    green.callback(Strange())
    os.close(answered)
    entries.pop(answered, None)
    assert list(states) == []


def test_framework_timeout(green, conn):
    """The framework's own Timeout interrupts a query, and is raised unchanged."""
    timeout = green.Timeout(0.1)
    with pytest.raises(green.Timeout) as caught, timeout:
        conn.cursor().execute("select pg_sleep(30)")
    assert caught.value is timeout
    assert conn.closed


def test_kill(green, conn):
    """A greenlet can be killed during a query."""
    ended = []

    def query():
        try:
            conn.cursor().execute("select pg_sleep(30)")
        finally:
            ended.append(True)

    task = green.spawn(query)
    with green.ticking():
        green.sleep(0.1)
    green.kill(task)
    green.sleep(0.01)
    assert ended == [True]
    assert conn.closed
