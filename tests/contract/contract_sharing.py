"""Greenlets and native threads that share a connection take turns."""

import gc
import io
import sys
import time
import uuid
from contextlib import contextmanager
from queue import Queue

import psycopg2
import pytest
from psycopg2.extensions import (
    ISOLATION_LEVEL_SERIALIZABLE,
    cursor,
    lobject,
    set_wait_callback,
)
from psycopg2.extras import (
    DictCursor,
    LogicalReplicationConnection,
    execute_values,
)
from psycopg2.pool import ThreadedConnectionPool

import psycogreen
from psycogreen._interface import turns
from psycogreen._wait.native import start_thread, wait_socket

LOCK = 20_13


@pytest.fixture
def held(connect):
    """Hold the advisory lock that `query` waits for; call it to let it go."""
    holder = connect()
    cur = holder.cursor()
    cur.execute("select pg_advisory_lock(%s)", (LOCK,))
    released = []

    def release():
        if not released:
            released.append(True)
            cur.execute("select pg_advisory_unlock(%s)", (LOCK,))

    yield release
    release()


@pytest.fixture
def watch(connect):
    """Return when a backend waits for the advisory lock."""
    watcher = connect()
    watcher.autocommit = True
    cur = watcher.cursor()

    def watch(pid):
        def waits():
            cur.execute(
                "select count(*) from pg_locks"
                " where pid = %s and locktype = 'advisory' and not granted",
                (pid,),
            )
            return cur.fetchone()[0]

        until(waits)

    return watch


def until(condition):
    """Let other greenlets run until the condition holds."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def query(conn):
    """Make a query that lasts until the advisory lock is free; return its answer."""
    cur = conn.cursor()
    cur.execute("select 42 from pg_advisory_xact_lock(%s)", (LOCK,))
    return cur.fetchone()[0]


@pytest.fixture
def busy(green, conn, held, watch):
    """A connection on which a greenlet makes a query, and the means to end it."""
    task = green.spawn(query, conn)
    watch(conn.info.backend_pid)

    class Busy:
        def __init__(self):
            self.conn = conn
            self.task = task

        def queue(self, function, *args):
            """Spawn a greenlet that waits for its turn in that function."""
            before = turns.queued()
            task = green.spawn(function, *args)
            until(lambda: turns.queued() == before + 1)
            return task

        def end(self):
            """Let the query end; check its answer."""
            held()
            assert green.wait(self.task) == 42

    return Busy()


def with_connection(conn):
    """Enter and leave a block that commits."""
    with conn:
        pass


METHODS = {
    "commit": lambda conn: conn.commit(),
    "rollback": lambda conn: conn.rollback(),
    "close": lambda conn: conn.close(),
    "reset": lambda conn: conn.reset(),
    "with": with_connection,
    "set_client_encoding": lambda conn: conn.set_client_encoding("LATIN1"),
    "set_isolation_level": lambda conn: conn.set_isolation_level(
        ISOLATION_LEVEL_SERIALIZABLE
    ),
    "tpc_recover": lambda conn: conn.tpc_recover(),
    "execute": lambda conn: conn.cursor().execute("select 1"),
    "executemany": lambda conn: conn.cursor().executemany("select %s", [(1,), (2,)]),
    "callproc": lambda conn: conn.cursor().callproc("version"),
    "execute_values": lambda conn: execute_values(
        conn.cursor(), "select * from (values %s) v", [(1,), (2,)]
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_waits_its_turn(green, busy, name):
    """A method that takes the connection's lock waits for its turn; the loop goes on."""
    task = busy.queue(METHODS[name], busy.conn)
    with green.ticking() as ticker:
        until(lambda: ticker.ticks > 1)
    assert turns.queued() == 1
    busy.end()
    green.wait(task)
    assert turns.queued() == 0


@pytest.mark.parametrize(
    "name", ["fetchone", "fetchmany", "fetchall", "__next__", "scroll", "close"]
)
def test_named_cursor_waits_its_turn(green, conn, held, watch, name):
    """A method of a named cursor waits for its turn."""
    cur = conn.cursor("named", cursor_factory=DictCursor, scrollable=True)
    cur.execute("select generate_series(1, 10)")
    cur.fetchone()
    owner = green.spawn(query, conn)
    watch(conn.info.backend_pid)
    arguments = [3] if name == "scroll" else []
    task = green.spawn(lambda: getattr(cur, name)(*arguments))
    until(turns.queued)
    held()
    found = green.wait(task)
    assert green.wait(owner) == 42
    expected = {"fetchone": [2], "__next__": [2], "fetchmany": [[2]]}
    if name in expected:
        assert found == expected[name]
    if name == "fetchall":
        assert found == [[n] for n in range(2, 11)]


def test_iteration_over_a_named_cursor_waits(green, conn, held, watch):
    """An iteration over a named cursor waits for its turn before each portion."""
    cur = conn.cursor("named")
    cur.itersize = 2
    cur.execute("select generate_series(1, 5)")
    rows = iter(cur)
    assert next(rows) == (1,)
    owner = green.spawn(query, conn)
    watch(conn.info.backend_pid)
    task = green.spawn(list, rows)
    until(turns.queued)
    held()
    assert green.wait(task) == [(n,) for n in range(2, 6)]
    assert green.wait(owner) == 42


@pytest.mark.parametrize("attribute", ["isolation_level", "readonly", "deferrable"])
def test_attribute_waits_its_turn(green, conn, held, watch, attribute):
    """Setting an attribute waits for its turn, since it makes a query in autocommit."""
    conn.autocommit = True
    owner = green.spawn(query, conn)
    watch(conn.info.backend_pid)
    value = "serializable" if attribute == "isolation_level" else True
    task = green.spawn(setattr, conn, attribute, value)
    until(turns.queued)
    held()
    green.wait(task)
    assert green.wait(owner) == 42
    assert getattr(conn, attribute) in (True, ISOLATION_LEVEL_SERIALIZABLE)


def test_client_side_rows_need_no_turn(green, conn, held, watch):
    """Rows that were received already can be fetched during another greenlet's query."""
    cur = conn.cursor()
    cur.execute("select generate_series(1, 5)")
    owner = green.spawn(query, conn)
    watch(conn.info.backend_pid)
    assert cur.fetchone() == (1,)
    assert cur.fetchmany(2) == [(2,), (3,)]
    assert list(cur) == [(4,), (5,)]
    cur.close()
    assert conn.get_transaction_status() is not None
    held()
    assert green.wait(owner) == 42


def test_first_come_first_served(green, busy):
    """Greenlets get their turns in the order of their calls."""
    order = []

    def work(n):
        cur = busy.conn.cursor()
        cur.execute("select %s", (n,))
        order.append(cur.fetchone()[0])

    tasks = [busy.queue(work, n) for n in range(5)]
    busy.end()
    for task in tasks:
        green.wait(task)
    assert order == list(range(5))


def test_former_owner_comes_last(green, conn, held, watch):
    """A greenlet that makes another query goes to the end of the queue."""
    order = []

    def owner():
        query(conn)
        conn.cursor().execute("select 1")
        order.append("owner")

    def other():
        conn.cursor().execute("select 1")
        order.append("other")

    task = green.spawn(owner)
    watch(conn.info.backend_pid)
    others = [green.spawn(other) for _ in range(3)]
    until(lambda: turns.queued() == 3)
    held()
    green.wait(task)
    for other in others:
        green.wait(other)
    assert order == ["other"] * 3 + ["owner"]


def test_timeout_leaves_the_queue(green, busy):
    """A Timeout in the queue leaves it, and does not cancel the query under way."""
    caught = []

    def work():
        try:
            with green.Timeout(0.05):
                busy.conn.commit()
        except green.Timeout as ex:
            caught.append(ex)

    green.wait(green.spawn(work))
    assert len(caught) == 1
    assert turns.queued() == 0
    busy.end()
    assert not busy.conn.closed
    busy.conn.commit()


def test_kill_leaves_the_queue(green, busy):
    """A greenlet that is killed in the queue leaves it; the next ones move up."""
    order = []
    tasks = [
        busy.queue(lambda n=n: (busy.conn.commit(), order.append(n))) for n in range(3)
    ]
    green.kill(tasks[1])
    assert turns.queued() == 2
    busy.end()
    green.wait(tasks[0])
    green.wait(tasks[2])
    assert order == [0, 2]


def test_killed_with_the_turn_just_given(green, conn, held, watch):
    """A greenlet that is killed after it got the turn, before it runs, passes it on."""
    queued = []

    def owner():
        cur = conn.cursor()
        cur.execute("select pg_advisory_xact_lock(%s)", (LOCK,))
        # The first one has the turn by now; the loop has not run since.
        green.kill(queued[0])

    task = green.spawn(owner)
    watch(conn.info.backend_pid)
    queued += [green.spawn(conn.commit), green.spawn(conn.rollback)]
    until(lambda: turns.queued() == 2)
    held()
    green.wait(task)
    green.wait(queued[1])
    assert turns.queued() == 0
    conn.commit()


def test_interrupted_owner_gives_its_turn(green, busy):
    """If the owner of the turn is killed, the waiting greenlets get an error."""
    caught = []

    def work():
        try:
            busy.conn.cursor().execute("select 1")
        except psycopg2.Error as ex:
            caught.append(type(ex))

    tasks = [busy.queue(work) for _ in range(2)]
    green.kill(busy.task)
    for task in tasks:
        green.wait(task)
    assert len(caught) == 2
    assert busy.conn.closed


def test_killer_closes(green, busy):
    """A greenlet may kill another one and close its connection."""
    green.kill(busy.task)
    busy.conn.close()
    assert busy.conn.closed


def test_refused_in_the_hub(green, busy):
    """The hub gets an error immediately if the connection is in use."""
    caught = []

    def commit():
        try:
            busy.conn.commit()
        except psycopg2.ProgrammingError as ex:
            caught.append(str(ex))

    green.call_in_hub(commit)
    until(lambda: caught)
    assert "in the hub" in caught[0]
    assert turns.queued() == 0
    busy.end()
    busy.conn.commit()


def test_free_connection_in_the_hub(green, conn):
    """The hub may close a connection that is not in use."""
    done = []
    green.call_in_hub(lambda: (conn.close(), done.append(True)))
    until(lambda: done)
    assert conn.closed


@pytest.mark.parametrize("operation", ["commit", "close", "execute"])
def test_refused_to_the_greenlet_itself(green, conn, operation):
    """Code that runs during a greenlet's own query gets an error, not a deadlock."""
    caught = []

    def callback(conn):
        if not caught:
            try:
                METHODS[operation](conn)
            except psycopg2.ProgrammingError as ex:
                caught.append(str(ex))
        green.callback(conn)

    set_wait_callback(callback)
    try:
        cur = conn.cursor()
        cur.execute("select 42")
    finally:
        set_wait_callback(green.callback)
    assert "would wait for itself" in caught[0]
    assert cur.fetchone() == (42,)


def test_adapter_that_queries(conn):
    """An adapter that runs before the query is sent may use the connection."""

    class Adapter:
        def __conform__(self, protocol):
            return self

        def getquoted(self):
            cur = conn.cursor()
            cur.execute("select 41")
            return b"%d" % (cur.fetchone()[0] + 1)

    cur = conn.cursor()
    cur.execute("select %s", (Adapter(),))
    assert cur.fetchone() == (42,)


def test_executemany_lets_others_between(green, conn):
    """executemany() gives the turn back while the application makes the next row."""
    wanted, made = Queue(), Queue()

    def produce():
        for n in iter(wanted.get, None):
            cur = conn.cursor()
            cur.execute("select %s + 1", (n,))
            made.put(cur.fetchone()[0])

    def rows():
        for n in range(3):
            wanted.put(n)
            yield (made.get(),)

    producer = green.spawn(produce)
    cur = conn.cursor()
    cur.execute("create temporary table numbers (n int)")
    cur.executemany("insert into numbers values (%s)", rows())
    wanted.put(None)
    green.wait(producer)
    assert cur.rowcount == 3
    cur.execute("select n from numbers order by n")
    assert cur.fetchall() == [(1,), (2,), (3,)]


def test_executemany_whose_rows_fail(green, conn, held, watch):
    """An error of the application's while another greenlet has its turn leaves that."""
    asked = []

    def rows():
        yield (1,)
        asked.append(green.spawn(query, conn))
        watch(conn.info.backend_pid)
        with psycogreen.blocking():  # so that the other does not get its answer yet
            held()
        wait_socket(conn.fileno(), write=False, timeout=30)
        raise Planned

    with pytest.raises(Planned):
        conn.cursor().executemany("select %s", rows())
    assert green.wait(asked[0]) == 42


class Planned(psycopg2.Error):
    """An error of an application's own."""


def test_executemany_refuses_as_before(conn):
    """executemany() refuses wrong arguments as psycopg2 does."""
    cur = conn.cursor()
    with pytest.raises(TypeError, match="not iterable"):
        cur.executemany("select %s", 5)
    with pytest.raises(TypeError):
        cur.executemany("select %s")
    with pytest.raises(ZeroDivisionError):
        cur.executemany("select %s", ((1 / n,) for n in (1, 0)))
    conn.rollback()
    cur.executemany(vars_list=iter([(1,)]), query="select %s")
    cur.close()
    with pytest.raises(psycopg2.InterfaceError):
        cur.executemany("select %s", [(1,)])
    with pytest.raises(psycopg2.InterfaceError):
        cursor.__new__(cursor).executemany("select %s", [(1,)])


def test_pool_is_closed(green, dsn, held, watch):
    """closeall() of psycopg2's pool waits for queries that are under way."""
    pool = ThreadedConnectionPool(1, 2, dsn)
    conn = pool.getconn()
    owner = green.spawn(query, conn)
    watch(conn.info.backend_pid)
    task = green.spawn(pool.closeall)
    until(turns.queued)
    held()
    green.wait(task)
    assert green.wait(owner) == 42
    assert conn.closed


@contextmanager
def native_query(conn):
    """Make a query in a native thread without a loop; check its answer."""
    found = []
    start_thread(lambda: found.append(query(conn)))
    yield
    until(lambda: found)
    assert found == [42]


def test_native_thread_has_the_turn(green, conn, held, watch):
    """A greenlet waits for a native thread's query, and its loop goes on."""
    with native_query(conn):
        watch(conn.info.backend_pid)
        task = green.spawn(conn.commit)
        until(turns.queued)
        with green.ticking():
            time.sleep(0.05)
        held()
        green.wait(task)


def test_native_thread_waits(green, busy):
    """A native thread waits for a greenlet's query."""
    done = []
    start_thread(lambda: done.append(METHODS["execute"](busy.conn)))
    until(turns.queued)
    busy.end()
    until(lambda: done)


def test_native_threads_and_greenlets(green, conn):
    """Greenlets and native threads on one connection each get their own answers."""
    wrong, done = [], []

    def work(name, queries):
        for n in range(queries):
            cur = conn.cursor()
            cur.execute("select %s::text, %s", (name, n))
            if cur.fetchone() != (name, n):
                wrong.append(name)
        done.append(name)

    for n in range(3):
        start_thread(lambda n=n: work(f"thread {n}", 50))
    with green.ticking():
        tasks = [green.spawn(work, f"greenlet {n}", 50) for n in range(3)]
        for task in tasks:
            green.wait(task)
        until(lambda: len(done) == 6)
    assert not wrong
    assert turns.queued() == 0


def test_destructor_of_another_greenlet(green, busy):
    """A cursor may be collected while its connection is in use."""
    cur = busy.conn.cursor()
    cycle = [cur]
    cycle.append(cycle)
    del cur, cycle
    gc.collect()
    busy.end()


def test_blocking_takes_turns_too(green, busy):
    """A call inside blocking() waits cooperatively for a query that began before."""

    def work():
        with psycogreen.blocking():
            busy.conn.commit()

    task = busy.queue(work)
    busy.end()
    green.wait(task)


TAKING_A_TURN = {
    "execute": lambda conn: conn.cursor().execute("select 1"),
    "executemany": lambda conn: conn.cursor().executemany("select %s", [(1,)]),
    "commit": lambda conn: conn.commit(),
    "autocommit": lambda conn: setattr(conn, "autocommit", False),
    "copy": lambda conn: conn.cursor().copy_expert(
        "copy (select 1) to stdout", io.BytesIO()
    ),
    "large object": lambda conn: conn.lobject().read(),
    "named cursor": lambda conn: conn.cursor("named").execute("select 1"),
}


@pytest.mark.parametrize("name", TAKING_A_TURN)
def test_signal_handler_raises(green, connect, name):
    """A signal handler that raises as soon as a turn is taken does not keep the turn.

    Python calls signal handlers when a function returns, as it calls this profiler.
    """
    interrupted = True
    for number in range(1, 100):
        conn = connect()
        left = number

        def interrupt(frame, event, arg):
            nonlocal left
            if event == "c_return":
                returned = arg.__name__
            else:
                returned = frame.f_code.co_name if event == "return" else ""
            is_own = "_interface" in frame.f_code.co_filename
            if is_own and returned in ("take", "setdefault"):
                left -= 1
                if left == 0:
                    sys.setprofile(None)
                    raise KeyboardInterrupt

        sys.setprofile(interrupt)
        try:
            TAKING_A_TURN[name](conn)
        except KeyboardInterrupt:
            pass
        else:
            interrupted = False
        finally:
            sys.setprofile(None)
        with green.Timeout(30):
            green.wait(green.spawn(conn.rollback))
        if not interrupted:
            return
    pytest.fail("it took too many turns")


def test_no_descriptor_is_left(green, busy, monkeypatch):
    """The queue for turns leaves no descriptor open."""
    opened = []
    bell = turns.bell

    @contextmanager
    def counted():
        with bell() as ends:
            opened.append(ends)
            yield ends
        opened.remove(ends)

    monkeypatch.setattr(turns, "bell", counted)
    tasks = [busy.queue(busy.conn.commit) for _ in range(5)]
    assert len(opened) == 5
    busy.end()
    for task in tasks:
        green.wait(task)
    assert not opened


def test_fork_forgets(script):
    """A forked child has no turns and queues of the parent."""
    script(
        """
        from psycogreen._interface import turns

        conn = psycopg2.connect(dsn)
        owner = green.spawn(conn.cursor().execute, "select pg_sleep(1)")
        green.sleep(0)
        other = green.spawn(conn.commit)
        while not turns.queued():
            green.sleep(0.001)
        pid = os.fork()
        if not pid:
            assert turns.queued() == 0
            turns.take(conn)
            turns.give(conn)
            query()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        green.wait(other)
        green.wait(owner)
        """
    )


def test_unpatch_puts_all_back():
    """unpatch_psycopg() restores psycopg2's own methods."""
    replaced = cursor.execute, psycopg2.extensions.connection.commit
    psycogreen.unpatch_psycopg()
    before = cursor.execute, psycopg2.extensions.connection.commit
    assert replaced != before
    psycogreen.patch_psycopg()
    assert (cursor.execute, psycopg2.extensions.connection.commit) != before
    psycogreen.unpatch_psycopg()
    assert (cursor.execute, psycopg2.extensions.connection.commit) == before


def test_methods_look_as_before():
    """The replaced methods have psycopg2's names, docstrings and errors."""
    psycogreen.unpatch_psycopg()
    names = ("execute", "fetchone", "close", "callproc")
    before = {name: getattr(cursor, name).__doc__ for name in names}
    psycogreen.patch_psycopg()
    for name in names:
        assert getattr(cursor, name).__name__ == name
        assert getattr(cursor, name).__doc__ == before[name]
    with pytest.raises(TypeError):
        cursor.execute(5, "select 1")
    with pytest.raises(psycopg2.InterfaceError):
        cursor.__new__(cursor).execute("select 1")


def test_cancel_from_another_greenlet(green, busy):
    """connection.cancel() ends another greenlet's query without waiting for a turn."""
    busy.conn.cancel()
    with pytest.raises(psycopg2.extensions.QueryCanceledError):
        green.wait(busy.task)
    busy.conn.rollback()
    assert busy.conn.closed == 0


def test_cancel_of_a_closed_connection(conn):
    """connection.cancel() on a closed connection raises psycopg2's error."""
    conn.close()
    with pytest.raises(psycopg2.InterfaceError):
        conn.cancel()


def test_cancel_in_the_hub(green, busy):
    """connection.cancel() in the hub sends the request, and does not wait."""
    green.call_in_hub(busy.conn.cancel)
    with pytest.raises(psycopg2.extensions.QueryCanceledError):
        green.wait(busy.task)


def test_close_at_exit(script):
    """A destructor closes its connection while Python ends."""
    output = script(
        """
        class Holder:
            def __init__(self):
                self.conn = psycopg2.connect(dsn)
                self.conn.cursor().execute("select 1")

            def __del__(self):
                self.conn.close()
                print("closed")

        sys.modules["kept to the end"] = Holder()
        """
    )
    assert output == "closed\n"


class Ending(lobject):
    """An application's class of large objects, with a destructor."""

    ended = 0

    def __del__(self):
        """Count the objects that were destroyed."""
        Ending.ended += 1


@pytest.mark.parametrize("factory", [lobject, Ending])
def test_large_object_dropped_during_a_query(green, conn, held, watch, factory):
    """A large object that nobody refers to any more does not wait for the lock."""
    large = conn.lobject(0, "wb", lobject_factory=factory)
    assert type(large).__name__ == factory.__name__
    owner = green.spawn(query, conn)
    watch(conn.info.backend_pid)
    expected = Ending.ended + (factory is Ending)
    del large
    # The native thread that has opened it may still hold the last reference.
    until(lambda: Ending.ended == expected)
    held()
    assert green.wait(owner) == 42
    conn.lobject(0, "wb").close()
    conn.rollback()


def test_start_of_replication_waits_its_turn(green, connect, held, watch):
    """A replication starts when another greenlet's query has ended."""
    conn = connect(connection_factory=LogicalReplicationConnection)
    cur = conn.cursor()
    slot = f"slot_{uuid.uuid4().hex}"
    cur.execute(f"CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL test_decoding")
    owner = green.spawn(query, conn)
    watch(conn.info.backend_pid)
    with pytest.raises(psycopg2.ProgrammingError, match="call start_replication first"):
        cur.consume_stream(print)
    task = green.spawn(cur.start_replication, slot_name=slot)
    until(turns.queued)
    held()
    assert green.wait(owner) == 42
    green.wait(task)
    assert cur.read_message() is None or cur.wal_end
