"""The hub: failures in it, waits in it, and its end."""

import errno
import gc
import logging
import os
import tempfile
import time
from contextlib import closing, suppress
from functools import partial

import psycopg2
import pytest
from greenlet import getcurrent, greenlet
from hub_tools import (
    await_,
    back,
    descriptors,
    in_hub,
    in_threads,
    native_sleep,
    own_leak,
    query,
)
from psycopg2.extensions import TRANSACTION_STATUS_ACTIVE, set_wait_callback

import psycogreen
from psycogreen._wait import epoll, hub, native, pure, twin


class Planned(Exception):
    """What a test throws."""


def is_active(conn):
    """Return whether the connection has sent a statement that is not answered."""
    return conn.info.transaction_status == TRANSACTION_STATUS_ACTIVE


# ---- failures ------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_raw_greenlet_fails(green, connect, error):
    """An exception that a greenlet raises into the hub ends no other wait."""
    conns = [connect() for _ in range(3)]
    for conn in conns:
        query(conn)
    ended = []

    def work():
        query(conns[0], "pg_sleep(0.05)")
        ended.append(True)
        msg = "raised by a raw greenlet"
        raise error(msg)

    other = green.spawn(query, conns[1], "42 from pg_sleep(0.3)")
    green.call_in_hub(greenlet(work, green.hub_greenlet()).switch)
    if error is ValueError:
        await_(green, lambda: ended)
    else:  # it ends the loop, and comes out of the main greenlet
        with pytest.raises(error, match="raw greenlet"):
            await_(green, lambda: False)
    with green.Timeout(60):
        assert query(conns[2], "43 from pg_sleep(0.05)") == 43
        assert green.wait(other) == 42


def test_failure_that_nobody_can_read(green, script):
    """An error that cannot be printed ends no other wait."""
    script(
        """
        from greenlet import getcurrent, greenlet
        conn, other = psycopg2.connect(dsn), psycopg2.connect(dsn)
        other.cursor().execute("select 1")
        ended = []

        def work():
            conn.cursor().execute("select pg_sleep(0.05)")
            ended.append(True)
            raise ValueError

        os.close(2)
        sys.stderr.close()
        green.call_in_hub(greenlet(work, green.hub_greenlet()).switch)
        while not ended:
            green.sleep(0.01)
        with green.Timeout(60):
            other.cursor().execute("select pg_sleep(0.05)")
        os._exit(0)
        """
    )


def test_signal_handler_fails_in_the_hub(green, connect, monkeypatch):
    """A signal handler that raises in the hub ends no wait."""
    if psycogreen.status().compiled:
        pytest.skip("no handler runs while it wakes greenlets in C")
    conn = connect()
    query(conn)

    def interrupted():
        if getcurrent() is not green.hub_greenlet():
            return time.monotonic()
        monkeypatch.undo()
        raise ValueError

    monkeypatch.setattr(pure, "monotonic", interrupted)
    task = green.spawn(query, conn, "42 from pg_sleep(0.1)")
    with green.Timeout(60):
        assert green.wait(task) == 42


def test_no_descriptor_for_another_set(green, connect, monkeypatch, caplog):
    """An epoll set that cannot be replaced stays in use, and is replaced later."""
    conn, other = connect(), connect()
    query(conn)
    query(other)
    epoll_set = epoll.entries[other.fileno()].epoll_set

    def fail():
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(epoll, "_epoll", fail)
    duplicate = os.dup(conn.fileno())
    conn.close()  # the server hangs up, which the duplicate tells for good
    with green.Timeout(60):
        assert query(other, "42 from pg_sleep(0.2)") == 42
    messages = [record.getMessage() for record in caplog.records]
    assert [text for text in messages if "too many open files" in text] == messages
    assert len(messages) == 1
    monkeypatch.undo()
    with green.Timeout(60):
        assert query(other, "43 from pg_sleep(0.1)") == 43
    before = epoll_set._collected
    green.sleep(0.2)
    assert epoll_set._collected - before < 5
    os.close(duplicate)


def test_connection_is_closed_and_the_set_replaced(green, dsn, connect):
    """A wait for a closed connection ends with an error when the set is replaced."""
    conn, other = psycopg2.connect(dsn, async_=True), connect()
    green.callback(conn)
    query(other)
    epoll_set = epoll.entries[other.fileno()].epoll_set
    conn.cursor().execute("select pg_sleep(60)")
    task = green.spawn(green.callback, conn)
    waiting = green.spawn(query, other, "42 from pg_sleep(0.5)")
    await_(green, lambda: epoll_set.waiting == 2)
    conn.close()
    green.call_in_hub(epoll_set._rebuild)
    with green.Timeout(60):
        with pytest.raises(psycopg2.InterfaceError, match="closed"):
            green.wait(task)
        assert green.wait(waiting) == 42


def test_file_in_the_place_of_a_socket(green, connect):
    """A wait ends with an error if a file has taken the socket's descriptor."""
    lost, other = connect(), connect()
    query(lost)
    query(other)
    epoll_set = epoll.entries[other.fileno()].epoll_set
    task = green.spawn(query, lost, "pg_sleep(60)")
    waiting = green.spawn(query, other, "42 from pg_sleep(0.5)")
    await_(green, lambda: epoll_set.waiting == 2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), lost.fileno())
    green.call_in_hub(epoll_set._rebuild)
    with green.Timeout(60):
        with pytest.raises(psycopg2.OperationalError):
            green.wait(task)
        assert green.wait(waiting) == 42


def test_connection_is_closed_under_a_wait(green, dsn, connect):
    """A wait ends with an error if another connection has taken its descriptor."""
    gc.collect()  # so that no lower number is free later
    conn = psycopg2.connect(dsn, async_=True)
    green.callback(conn)
    number = conn.fileno()
    conn.cursor().execute("select pg_sleep(60)")
    task = green.spawn(green.callback, conn)
    # There is an entry by chance only: an earlier connection's of that number.
    await_(green, lambda: number in epoll.entries and epoll.entries[number].waiter)
    conn.close()
    other = connect()
    assert other.fileno() == number
    with green.Timeout(60):
        assert query(other, "42 from pg_sleep(0.05)") == 42
        with pytest.raises(psycopg2.InterfaceError, match="closed"):
            green.wait(task)


# ---- waits between the steps of another ----------------------------------------


def test_query_while_an_entry_is_made(green, connect, monkeypatch):
    """A destructor that queries while an entry is made disturbs no wait."""
    inner, conn = connect(), connect()
    query(inner)
    entry = epoll.EpollSet.entry

    def interrupted(*arguments):
        monkeypatch.undo()
        native_sleep(0.2)  # the outer query's answer is there
        assert query(inner, "42 from pg_sleep(0.1)") == 42
        return entry(*arguments)

    monkeypatch.setattr(epoll.EpollSet, "entry", interrupted)
    with green.Timeout(60):
        assert query(conn, "41") == 41


def test_query_between_two_waits_of_one_query(green, connect, monkeypatch):
    """A destructor that queries between two waits of a query disturbs neither wait."""
    inner, conn = connect(), connect()
    conn.autocommit = True
    query(inner)
    query(conn)
    polled = []

    def poll():
        polled.append(True)
        if len(polled) == 2:  # after the first wait
            monkeypatch.undo()
            assert query(inner, "42 from pg_sleep(0.3)") == 42
        return conn.poll()

    monkeypatch.setitem(twin.polls, id(conn), poll)
    with green.Timeout(60):
        conn.cursor().execute(
            "do $$ begin for n in 1..2 loop raise notice '%', n; perform pg_sleep(0.1);"
            " end loop; perform pg_sleep(0.5); end $$"
        )
    assert len(conn.notices) == 2
    assert len(polled) == 2


def test_sleep_amid_a_wait(green, connect, monkeypatch):
    """A destructor that sleeps before a wait begins is not woken by its answer."""
    conn = connect()
    query(conn)
    green.sleep(0)  # the loop is not held any more
    loop = epoll.entries[conn.fileno()].epoll_set.hub
    hold = loop.hold
    slept = []

    def interrupted(epoll_set):
        monkeypatch.undo()
        hold(epoll_set)
        begin = time.monotonic()
        green.sleep(0.3)
        slept.append(time.monotonic() - begin)

    monkeypatch.setattr(loop, "hold", interrupted, raising=False)
    with green.Timeout(60):
        assert query(conn, "42") == 42
    assert slept[0] >= 0.29


def test_query_while_the_loop_is_held(green, script):
    """A destructor that queries while the loop is held does not let the loop end."""
    script(
        """
        from hub_tools import query as ask
        from psycogreen._wait import epoll
        conn, inner = psycopg2.connect(dsn), psycopg2.connect(dsn)
        ask(conn)
        green.sleep(0)  # the loop is not held any more
        loop = epoll.entries[conn.fileno()].epoll_set.hub
        hold = loop.hold

        def interrupted(*arguments):
            del loop.hold
            hold(*arguments)
            assert ask(inner, "42 from pg_sleep(0.05)") == 42

        loop.hold = interrupted
        assert ask(conn, "43 from pg_sleep(0.05)") == 43
        """
    )


def test_collector_that_queries(green, connect):
    """Destructors that query, run by the garbage collector, disturb no wait."""

    class Destroyed:
        def __init__(self, free):
            self.free = free
            self.itself = self

        def __del__(self):
            if self.free:
                conn = self.free.pop()
                try:
                    query(conn)
                finally:
                    self.free.append(conn)

    free = [connect() for _ in range(3)]
    conns = [connect() for _ in range(5)]

    def work(conn):
        for n in range(20):
            Destroyed(free)
            assert query(conn, str(n)) == n

    threshold = gc.get_threshold()
    gc.set_threshold(1, 5, 5)
    try:
        with green.Timeout(60):
            tasks = [green.spawn(work, conn) for conn in conns]
            for task in tasks:
                green.wait(task)
    finally:
        gc.set_threshold(*threshold)
    gc.collect()


# ---- waits in the hub ----------------------------------------------------------


def warnings(caplog):
    """Return the warnings in the log."""
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_query_in_the_hub(green, connect, dsn, caplog):
    """A query in the hub, such as a destructor's, stops the loop for a short time."""
    conn = connect()
    assert query(conn) == 1
    other = green.spawn(query, connect(), "43 from pg_sleep(0.1)")
    assert in_hub(green, partial(query, conn, "42 from pg_sleep(0.05)")) == 42
    assert "in the hub" in warnings(caplog)[0]
    assert query(conn, "44") == 44
    assert green.wait(other) == 43
    new = in_hub(green, partial(psycopg2.connect, dsn))
    assert query(new, "45") == 45
    new.close()


def test_large_answer_in_the_hub(green, connect, monkeypatch):
    """An answer to a query in the hub may arrive in any number of pieces."""
    monkeypatch.setattr(hub, "LONGEST_STALL", 60)  # the server takes its time
    conn = connect()
    text = in_hub(green, partial(query, conn, "repeat('x', 30000000)"))
    assert len(text) == 30_000_000


def test_commit_in_the_hub(green, connect):
    """A commit in the hub stops the loop for a short time only."""
    conn = connect()
    query(conn)
    assert in_hub(green, conn.commit) is None
    assert not conn.closed


def test_long_query_in_the_hub(green, conn, connect, monkeypatch):
    """A long query in the hub raises an error, so that the loop goes on."""
    query(conn)
    monkeypatch.setattr(hub, "LONGEST_STALL", 0.1)
    error = in_hub(green, partial(query, conn, "pg_sleep(60)"))
    assert isinstance(error, psycopg2.ProgrammingError)
    assert "spawn a greenlet" in str(error)
    with green.ticking():
        query(connect(), "pg_sleep(0.1)")


def test_limit_in_the_hub(green, conn):
    """The callback's own limit holds in the hub."""
    set_wait_callback(partial(green.callback, timeout=0.1))
    error = in_hub(green, partial(query, conn, "pg_sleep(60)"))
    assert isinstance(error, psycogreen.WaitTimeout)


def test_collected_in_the_hub(green, connect):
    """A connection that a destructor uses in the hub stays usable."""
    conn = connect()
    query(conn)

    class Destroyed:
        def __del__(self):
            query(conn)

    def collect():
        destroyed = Destroyed()
        destroyed.itself = destroyed
        del destroyed
        return gc.collect() > 0

    assert in_hub(green, collect) is True
    assert not conn.closed
    assert query(conn, "42") == 42


def test_without_assertions(green, script):
    """A wait in the hub works with python -O."""
    script(
        """
        from hub_tools import in_hub, query as ask
        from functools import partial
        conn = psycopg2.connect(dsn)
        ask(conn)
        answer = in_hub(green, partial(ask, conn, "42 from pg_sleep(0.1)"))
        if answer != 42 or __debug__:
            sys.exit(f"{answer!r}")
        """,
        "-O",
    )


# ---- ends ----------------------------------------------------------------------


def query_with_a_loop(green, dsn):
    """Query in a thread that has a loop of its own."""
    green.sleep(0)
    conn = psycopg2.connect(dsn)
    query(conn, "pg_sleep(0.001)")
    conn.close()


def test_threads_that_end(green, dsn):
    """A thread that has waited leaves no descriptor and no connection behind."""
    if os.environ.get("EVENTLET_HUB") == "asyncio":
        pytest.skip("asyncio's own loops leave theirs")
    work = partial(query_with_a_loop, green, dsn)
    in_threads(work, 2)
    leak = own_leak(partial(in_threads, partial(green.sleep, 0.001), 40))
    before, entries = descriptors(), len(epoll.entries)
    in_threads(work, 40)
    assert back(descriptors, before + leak)
    assert back(lambda: len(epoll.entries), entries)
    assert back(lambda: len(epoll._sets), 1)


def test_thread_pool_that_ends(green, dsn):
    """Ended threads of gevent's pool, which destroy their hubs, leave no descriptor."""
    if green.name != "gevent":
        pytest.skip("eventlet's threads for blocking calls have no end")
    from gevent.threadpool import ThreadPool

    def use():
        pool = ThreadPool(4)
        for task in [pool.spawn(query_with_a_loop, green, dsn) for _ in range(8)]:
            task.get()
        pool.kill()

    use()
    native_sleep(0.1)
    before, entries = descriptors(), len(epoll.entries)
    for _ in range(5):
        use()
    assert back(descriptors, before)
    assert back(lambda: len(epoll.entries), entries)


def test_hubs_that_end(green, script):
    """The epoll set of a hub is closed when another hub replaces that hub."""
    if os.environ.get("EVENTLET_HUB") == "asyncio":
        pytest.skip("eventlet's asyncio hub cannot be made twice in a thread")
    script(
        """
        from functools import partial
        from hub_tools import back, descriptors, own_leak, query as ask
        from psycogreen._wait import epoll
        conn = psycopg2.connect(dsn)

        def use(wait):
            for _ in range(20):
                wait()
                green.new_hub()

        # Long enough: after the wait has found its hub gone, there is no answer yet.
        query = partial(ask, conn, "pg_sleep(0.05)")
        use(query)
        leak = own_leak(partial(use, partial(green.sleep, 0.001)))
        before = descriptors()
        use(query)
        assert back(descriptors, before + leak)
        assert len(epoll._sets) == 1
        assert len(epoll.entries) == 1
        """
    )


def test_hubs_that_are_collected(green, script):
    """The garbage collector may end a hub that another hub has replaced."""
    if os.environ.get("EVENTLET_HUB") == "asyncio":
        pytest.skip("eventlet's asyncio hub cannot be made twice in a thread")
    script(
        """
        import gc
        from hub_tools import query as ask
        conn = psycopg2.connect(dsn)
        # On Python 3.15 the collector ends a suspended greenlet, and clears its objects
        # in an order that depends on the collections before.
        for n in range(60):
            gc.set_threshold(1 + n * 7 % 30, 2, 1)
            ask(conn, "pg_sleep(0.001)")
            gc.collect(n % 3)
            green.new_hub()
        """
    )


def test_connections_that_end(green, dsn):
    """A connection that is closed and dropped leaves no entry behind."""
    conns = [psycopg2.connect(dsn) for _ in range(20)]
    descriptors = {conn.fileno() for conn in conns}
    for conn in conns:
        query(conn)
        conn.close()
    assert descriptors <= set(epoll.entries)
    del conn, conns[:]
    gc.collect()
    assert not descriptors & set(epoll.entries)


def test_query_while_a_hub_is_destroyed(green, dsn):
    """A destructor that queries while a hub is destroyed blocks, and keeps its connection."""
    if green.name != "gevent":
        pytest.skip("eventlet's hubs are not destroyed")
    from gevent.exceptions import HubDestroyed, LoopExit

    outcome = []

    def work():
        with closing(psycopg2.connect(dsn)) as conn:
            query(conn, "pg_sleep(0.01)")
            with suppress(LoopExit):  # as Hub.destroy() does, first of all
                green.hub_greenlet().throw(HubDestroyed(True))
            green.hub_greenlet().loop.destroy()
            outcome.append(query(conn, "42 from pg_sleep(0.01)"))
        green.new_hub()
        return True

    in_threads(work, 1)
    assert outcome == [42]


def test_interruption_after_a_hub_was_destroyed(green, dsn):
    """What is thrown into a wait whose hub is gone comes out of it, unchanged."""
    if green.name != "gevent":
        pytest.skip("eventlet's hubs are not destroyed")
    caught = []

    def work():
        green.sleep(0)
        conn, other = psycopg2.connect(dsn), psycopg2.connect(dsn)

        def wait():
            try:
                query(conn, "pg_sleep(60)")
            except BaseException as ex:
                caught.append(type(ex))

        waiting = greenlet(wait)
        green.call_in_hub(waiting.switch)
        while not is_active(conn):
            query(other)
        green.new_hub()
        waiting.throw(Planned)
        other.close()
        return waiting.dead

    in_threads(work, 1)
    assert caught == [Planned]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_after_a_hub_was_destroyed(green, script):
    """A forked child leaves all epoll sets to the parent, also after a hub was destroyed."""
    if green.name != "gevent":
        pytest.skip("eventlet's hubs are not destroyed")
    script(
        """
        from psycogreen._wait import native
        from hub_tools import query as ask
        hold = native.original("_thread", "allocate_lock")()
        hold.acquire()
        ready = []

        def thread():
            query()
            green.new_hub()
            ready.append(True)
            hold.acquire()
            hold.release()

        for _ in range(6):
            native.start_thread(thread)
        while len(ready) < 6:
            green.sleep(0.01)
        conn = psycopg2.connect(dsn)
        ask(conn)
        task = green.spawn(ask, conn, "42 from pg_sleep(0.3)")
        green.sleep(0.05)
        if not os.fork():
            green.sleep(1)
            os._exit(0)
        native.original("time", "sleep")(0.6)  # the child goes first
        with green.Timeout(60):
            assert green.wait(task) == 42
        os._exit(0)
        """
    )


def test_thread_with_a_former_ones_number(green, script):
    """A thread does not wait with the loop of an ended thread of the same number."""
    script(
        """
        from psycogreen._wait import native
        from hub_tools import in_threads, query as ask
        get_ident = native.original("_thread", "get_ident")
        conn = psycopg2.connect(dsn)
        numbers, outcome, kept = [], [], []

        def first():
            ask(conn)
            stuck = psycopg2.connect(dsn)
            ask(stuck)
            kept.append(green.spawn(ask, stuck, "pg_sleep(60)"))
            green.sleep(0.05)
            numbers.append(get_ident())

        def second():
            green.sleep(0)
            outcome.append(ask(conn, "42 from pg_sleep(0.05)"))
            numbers.append(get_ident())

        for _ in range(20):
            del numbers[:]
            in_threads(first, 1)
            native.original("time", "sleep")(0.05)
            in_threads(second, 1)
            if numbers[0] == numbers[1]:
                break
        assert numbers[0] == numbers[1]
        assert set(outcome) == {42}
        os._exit(0)
        """
    )


def test_limit_that_ends_in_a_child(green, script):
    """A limited wait that ends in a forked child leaves the parent's session alone."""
    script(
        """
        from functools import partial
        from psycogreen._wait import native
        from psycopg2.extensions import TRANSACTION_STATUS_ACTIVE, set_wait_callback
        from hub_tools import query as ask
        conn = psycopg2.connect(dsn)
        killed = psycopg2.connect(dsn)
        set_wait_callback(partial(green.callback, timeout=4))
        tasks = [
            green.spawn(ask, each, "42 from pg_sleep(1)") for each in (conn, killed)
        ]
        green.sleep(0.1)
        pid = os.fork()
        if not pid:
            green.kill(tasks[1])
            green.sleep(4.5)  # beyond the limit
            os._exit(0)
        assert [green.wait(task) for task in tasks] == [42, 42]
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert ask(conn, "43") == 43
        assert ask(killed, "44") == 44
        """
    )


def test_status_while_loops_are_made(green, dsn):
    """The figures can be read while other threads begin and end."""
    import sys

    errors = []
    going = [True]

    def read():
        while going:
            try:
                psycogreen.status()
            except BaseException as ex:
                errors.append(ex)
                return

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        native.start_thread(read)
        in_threads(partial(query_with_a_loop, green, dsn), 30)
    finally:
        going.clear()
        sys.setswitchinterval(interval)
    assert not errors
