"""The pool without Django: its queue, its resets, and its server processes."""

import math
import re
import textwrap

import pytest

from psycogreen._pool.keeper import Keeper
from psycogreen._pool.options import Options
from psycogreen._pool.traces import leaves_traces
from psycogreen.pool import Pool

# In each a pool of two is used by threads, which are greenlets where it says so.
START = {
    "gevent": "from gevent import monkey; monkey.patch_all()\n"
    "import psycogreen; psycogreen.patch_psycopg()",
    "eventlet": "import eventlet; eventlet.monkey_patch()\n"
    "import psycogreen; psycogreen.patch_psycopg()",
    "native": "",
}
COMMON = """
import os, threading, time
from functools import partial
import psycopg2
from children import exit_status
from psycogreen.pool import *

# The server may still have connections of an earlier test's process.
application = f"pooled {os.getpid()}"
connect = partial(psycopg2.connect, os.environ["DSN"], application_name=application)

def make(**options):
    return Pool(connect, **{"min_size": 0, "max_size": 2, "name": "pooled", **options})

def in_threads(function, arguments):
    threads = [threading.Thread(target=function, args=(each,)) for each in arguments]
    for thread in threads: thread.start()
    for thread in threads: thread.join()

def await_(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, pool.status()
        time.sleep(0.01)

def ask(sql, dsn=os.environ["DSN"]):
    conn = psycopg2.connect(dsn)
    with conn.cursor() as cursor:
        cursor.execute(sql)
        answer = cursor.fetchone()[0]
    conn.close()
    return answer

def query(conn, sql):
    with conn.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone() if cursor.description else None

backends = f"select count(*) from pg_stat_activity where application_name = '{application}'"
"""

each_process = pytest.mark.parametrize("process", START)


@pytest.fixture
def run(python):
    """Run code in a process of that kind, with a pool at hand."""

    def run(process, code):
        return python(START[process] + COMMON + textwrap.dedent(code))

    return run


@each_process
def test_sharing(run, process):
    """Many threads share a few connections; none is left in use."""
    run(
        process,
        """
        pool = make()
        pids, most = set(), []
        def work(n):
            for _ in range(5):
                with pool.connection() as conn:
                    pids.add(query(conn, "select pg_backend_pid(), pg_sleep(0.001)")[0])
                    most.append(pool.status().in_use)
        in_threads(work, range(20))
        assert len(pids) == 2 and max(most) == 2, (pids, most)
        now = pool.status()
        assert (now.size, now.in_use, now.waiting, now.timed_out) == (2, 0, 0, 0), now
        pool.close()
        await_(lambda: pool.status().size == 0)
        assert ask(backends) == 0
        """,
    )


@each_process
def test_in_order(run, process):
    """Waiting callers are served in the order of their calls."""
    run(
        process,
        """
        pool = make(max_size=1)
        loan = pool.get()
        served = []
        def work(n):
            with pool.connection():
                served.append(n)
        threads = []
        for n in range(10):
            threads.append(threading.Thread(target=work, args=(n,)))
            threads[-1].start()
            await_(lambda: pool.status().waiting == n + 1)
        assert pool.status().longest_wait > 0
        pool.put(loan)
        for thread in threads: thread.join()
        assert served == list(range(10)), served
        """,
    )


@each_process
def test_timeout(run, process):
    """The error of a caller that waits too long has the pool's figures."""
    run(
        process,
        """
        pool = make(max_size=1, timeout=0.1, max_waiting=1)
        loan = pool.get()
        try:
            pool.get()
        except PoolTimeout as ex:
            assert "1 of 1 are in use, 0 others wait" in str(ex), ex
            assert "within 0.1 s" in str(ex), ex
        else:
            raise AssertionError
        assert pool.status().timed_out == 1
        waits = threading.Thread(target=lambda: pool.put(pool.get(60)))
        waits.start()
        await_(lambda: pool.status().waiting == 1)
        try:
            pool.get()
        except TooManyRequests as ex:
            assert "max_waiting" in str(ex), ex
        else:
            raise AssertionError
        pool.put(loan)
        waits.join()
        assert pool.status().in_use == 0
        """,
    )


@each_process
def test_as_new(run, process):
    """Changes of a borrower to its session are undone before the next loan."""
    run(
        process,
        """
        from psycopg2.extensions import ISOLATION_LEVEL_SERIALIZABLE
        pool = make(max_size=1, configure=lambda conn: configure(conn))
        def configure(conn):
            query(conn, "set statement_timeout to 1234")
            conn.commit()
        def fresh():
            loan = pool.get()
            conn = loan.conn
            found = (
                conn.get_transaction_status(), conn.autocommit, conn.isolation_level,
                conn.readonly, conn.cursor_factory, conn.notices,
                query(conn, "show statement_timeout"), query(conn, "show search_path"),
                query(conn, "select count(*) from pg_locks where locktype = 'advisory'"),
                query(conn, "select count(*) from pg_cursors"),
                query(conn, "select to_regclass('left_behind')"),
            )
            pid = conn.get_backend_pid()
            pool.put(loan)
            return found, pid
        new, pid = fresh()
        assert new[6] == ("1234ms",), new
        assert fresh() == (new, pid)
        # Each with whether the connection can be kept.
        uses = [
            (lambda conn: query(conn, "select 1"), True),
            (lambda conn: query(conn, "select 1 from nowhere"), True),
            (lambda conn: query(conn, "set search_path to nowhere"), True),
            (lambda conn: query(conn, "select 1; set search_path to nowhere; commit"),
             True),
            (lambda conn: query(conn, "select set_config('search_path', 'a', false)"),
             True),
            (lambda conn: query(conn, "select pg_advisory_lock(1)"), True),
            (lambda conn: conn.cursor().callproc("pg_advisory_lock", (1,)), True),
            (lambda conn: query(conn, "create temp table left_behind (a int)"), True),
            (lambda conn: query(conn, "select 1 a into temp left_behind; commit"), True),
            (lambda conn: setattr(conn, "autocommit", True), True),
            (lambda conn: setattr(conn, "autocommit", True)
             or query(conn, "set search_path to nowhere"), True),
            (lambda conn: setattr(conn, "autocommit", True) or query(conn, "begin"), True),
            (lambda conn: query(conn, "do $$ begin raise notice 'x'; end $$"), True),
            (lambda conn: setattr(conn, "cursor_factory", psycopg2.extras.DictCursor),
             True),
            (lambda conn: setattr(conn, "isolation_level", ISOLATION_LEVEL_SERIALIZABLE),
             False),
            (lambda conn: setattr(conn, "readonly", True), False),
            (lambda conn: setattr(conn, "autocommit", True)
             or conn.cursor("held", withhold=True).execute("select 1"), False),
            (lambda conn: conn.reset(), True),
        ]
        import psycopg2.extras
        for n, (use, kept) in enumerate(uses):
            loan = pool.get()
            try:
                use(loan.conn)
            except psycopg2.Error:
                assert n == 1
            pool.put(loan)
            found, now = fresh()
            assert found == new, (n, found, new)
            assert (now == pid) == kept, n
            pid = now
        """,
    )


@each_process
def test_dead_connections(run, process):
    """A connection that the server has closed is not lent."""
    run(
        process,
        """
        pool = make()
        loans = [pool.get(), pool.get()]
        pids = {loan.conn.get_backend_pid() for loan in loans}
        for loan in loans: pool.put(loan)
        for pid in pids:
            ask(f"select pg_terminate_backend({pid}, 10000)")
        for _ in range(3):
            with pool.connection() as conn:
                assert conn.get_backend_pid() not in pids
                assert query(conn, "select 42") == (42,)
        await_(lambda: pool.status().in_use == 0)
        """,
    )


@each_process
def test_cannot_connect(run, process):
    """An error while opening a connection is raised in the waiting caller."""
    run(
        process,
        """
        def refuse(connection_factory):
            raise psycopg2.OperationalError("refused")
        pool = Pool(refuse, min_size=0, max_size=2)
        errors = []
        def work(n):
            try:
                pool.get(60)
            except psycopg2.OperationalError as ex:
                errors.append(str(ex))
        in_threads(work, range(20))
        assert errors == ["refused"] * 20, errors
        assert pool.status().size == 0, pool.status()
        """,
    )


@each_process
def test_sizes_and_ages(run, process):
    """The pool keeps min_size connections, and closes old and idle ones."""
    run(
        process,
        """
        pool = make(min_size=2, max_size=4, max_idle=0.3)
        pool.put(pool.get())
        await_(lambda: (pool.status().size, pool.status().in_use) == (2, 0))
        loans = [pool.get() for _ in range(4)]
        for loan in loans: pool.put(loan)
        await_(lambda: pool.status().size == 2)
        old = {session.conn.get_backend_pid() for session in pool._keeper.places.idle()}
        ask("select count(pg_terminate_backend(pid)) from pg_stat_activity"
            f" where application_name = '{application}'")
        def replaced():
            now = {session.conn.get_backend_pid() for session in pool._keeper.places.idle()}
            return len(now) == 2 and not now & old
        await_(replaced)
        pool.close()
        pool = make(max_lifetime=0.2)
        loan = pool.get()
        pid = loan.conn.get_backend_pid()
        time.sleep(0.3)
        pool.put(loan)
        with pool.connection() as conn:
            assert conn.get_backend_pid() != pid
        """,
    )


@each_process
def test_close(run, process):
    """After close(), waiting callers get an error, and returned connections are closed."""
    run(
        process,
        """
        pool = make(max_size=1)
        assert [each.name for each in status()] == []
        loan = pool.get()
        assert [each.name for each in status()] == ["pooled"]
        told = []
        def work():
            try:
                pool.get(60)
            except PoolClosed as ex:
                told.append(str(ex))
        waits = threading.Thread(target=work)
        waits.start()
        await_(lambda: pool.status().waiting == 1)
        pool.close()
        pool.close()
        waits.join()
        assert told == ["pool 'pooled' is closed"], told
        assert status() == []
        pool.put(loan)
        pool.put(loan)
        assert loan.conn.closed
        await_(lambda: pool.status().size == 0)
        """,
    )


@pytest.mark.parametrize("framework", ["gevent", "eventlet"])
def test_killed(run, framework):
    """A killed borrower loses no place of the pool, and leaves no extra connection."""
    spawn = {
        "gevent": "from gevent import spawn; kill = lambda thread: thread.kill()\n",
        "eventlet": "from eventlet import spawn; kill = lambda thread: thread.kill()\n",
    }
    run(
        framework,
        spawn[framework]
        + textwrap.dedent("""
        import random
        chosen = random.Random(1)
        pool = make(max_size=3, timeout=60)
        most = 0
        def work():
            while True:
                with pool.connection() as conn:
                    query(conn, "select pg_sleep(0.002)")
        threads = [spawn(work) for _ in range(12)]
        for n in range(200):
            time.sleep(chosen.random() / 300)
            victim = chosen.randrange(12)
            kill(threads[victim])
            threads[victim] = spawn(work)
            if n % 10 == 0:
                most = max(most, ask(backends))
        for thread in threads: kill(thread)
        await_(lambda: pool.status().in_use == 0)
        assert pool.status().waiting == 0
        assert most <= 3, most
        loans = [pool.get() for _ in range(3)]
        assert pool.status().in_use == 3
        """),
    )


@each_process
def test_fork(run, process):
    """A forked child starts without connections, and does not touch its parent's."""
    run(
        process,
        """
        import warnings
        warnings.simplefilter("ignore")
        pool = make()
        used, idle = pool.get(), pool.get()
        pids = {used.conn.get_backend_pid(), idle.conn.get_backend_pid()}
        pool.put(idle)
        if not (pid := os.fork()):
            failed = 1
            try:
                assert status() == [] and pool.status().size == 0
                pool.put(used)
                for _ in range(3):
                    with pool.connection() as conn:
                        assert query(conn, "select 42") == (42,)
                        assert conn.get_backend_pid() not in pids
                assert pool.status().size == 1
                failed = 0
            finally:
                os._exit(failed)
        assert exit_status(pid) == 0
        assert query(used.conn, "select 42") == (42,)
        assert not idle.conn.closed and query(idle.conn, "select 42") == (42,)
        """,
    )


def test_used_after_a_fork(run):
    """A pool may be made before a fork and a monkey patch, and used after them."""
    run(
        "native",
        """
        pool = make(max_size=1, timeout=10)
        if not (pid := os.fork()):
            failed = 1
            try:
                from gevent import monkey; monkey.patch_all()
                import psycogreen; psycogreen.patch_psycopg()
                def work(n):
                    with pool.connection() as conn:
                        query(conn, "select pg_sleep(0.01)")
                in_threads(work, range(5))
                assert pool.status().in_use == 0
                failed = 0
            finally:
                os._exit(failed)
        assert exit_status(pid) == 0
        """,
    )


def test_tended():
    """What is idle is looked at by one thread at a time, and stays in its order."""
    options = Options(
        min_size=0, max_size=4, timeout=1, max_waiting=0, max_lifetime=1, max_idle=1
    )
    keeper = Keeper("pool", None, None, options)
    closed = []

    class Idle:
        idle_since = math.inf

        def __init__(self, *, good):
            self.good = good

        def is_old(self):
            return False

        def is_alive(self):
            assert self not in keeper.places.idle()
            return self.good

        def close(self):
            closed.append(self)

        def await_end(self):
            pass

    sessions = [Idle(good=good) for good in (True, False, True, True)]
    for session in sessions:
        assert keeper.places.claim(None)
        keeper.places.release(session)
    keeper._close_old()
    assert closed == sessions[1:2]
    assert keeper.places.idle() == [sessions[0], *sessions[2:]]


@pytest.mark.parametrize("framework", ["gevent", "eventlet"])
def test_interrupted(run, framework):
    """A borrower that is interrupted in a query gets that exception."""
    run(
        framework,
        f"from {framework} import Timeout"
        + textwrap.dedent("""
        pool = make(max_size=1)
        try:
            with Timeout(0.1), pool.connection() as conn:
                query(conn, "select pg_sleep(60)")
        except Timeout:
            pass
        else:
            raise AssertionError
        with pool.connection() as conn:
            assert query(conn, "select 42") == (42,)
        """),
    )


@pytest.mark.parametrize("framework", ["gevent", "eventlet"])
def test_killed_again_while_it_returns(run, framework):
    """A place is not lost if a borrower is killed repeatedly while it waits to return it."""
    spawn = {
        "gevent": "import gevent; spawn = gevent.spawn\n"
        "kill = lambda thread: thread.kill(block=False)\n",
        "eventlet": "from eventlet import spawn; kill = lambda thread: thread.kill()\n",
    }
    run(
        framework,
        spawn[framework]
        + textwrap.dedent("""
        from psycogreen._interface.turns import queued
        pool = make(max_size=1)
        loan = pool.get()
        pid = loan.conn.get_backend_pid()
        spawn(query, loan.conn, "select pg_sleep(60)")
        await_(lambda: ask(f"select state from pg_stat_activity where pid = {pid}") == "active")
        ended = []
        def put_back():
            try:
                pool.put(loan)
            finally:
                ended.append(True)
        borrower = spawn(put_back)
        await_(queued)
        while not ended:
            kill(borrower)
            time.sleep(0.01)
        assert pool.status().in_use == 1
        assert ask(f"select pg_cancel_backend({pid})")
        await_(lambda: not pool.status().size)
        assert ask(backends) == 0
        with pool.connection(): pass
        """),
    )


def test_interrupted_when_it_is_served(run):
    """An exception of a signal handler, after a connection was handed over, loses nothing."""
    run(
        "native",
        """
        import _thread, signal
        from psycogreen._pool import places
        class Stop(Exception): pass
        def stop(*_): raise Stop
        signal.signal(signal.SIGUSR1, stop)
        class Lock:
            allocate_lock = classmethod(lambda cls: cls())
            def __init__(self):
                self.lock = _thread.allocate_lock()
                self.release = self.lock.release
            def acquire(self, *args, **options):
                self.lock.acquire(*args, **options)
                if options:
                    signal.raise_signal(signal.SIGUSR1)
                return True
        pool = make(max_size=1, timeout=60)
        loan = pool.get()
        places._thread = Lock
        threading.Thread(
            target=lambda: (await_(lambda: pool.status().waiting), pool.put(loan))
        ).start()
        try:
            pool.get()
        except Stop:
            pass
        else:
            raise AssertionError
        places._thread = _thread
        with pool.connection(): pass
        """,
    )


@each_process
def test_close_fails(run, process):
    """A connection whose own close() raises an error takes no place with it."""
    run(
        process,
        """
        import logging
        logging.disable()
        class Failing(psycopg2.extensions.connection):
            def close(self):
                super().close()
                raise ValueError
        pool = make(max_size=1, connection_factory=Failing)
        for _ in range(2):
            pool.drop(pool.get())
        await_(lambda: not pool.status().size)
        """,
    )


@pytest.mark.parametrize(
    ("framework", "call"),
    [
        ("gevent", "import gevent; call = gevent.get_hub().threadpool.apply"),
        ("eventlet", "from eventlet.tpool import execute as call"),
    ],
)
def test_native_thread_of_a_green_process(run, framework, call):
    """What a native thread drops, in a process with a loop, leaves its place."""
    run(
        framework,
        f"{call}\n"
        + textwrap.dedent("""
        pool = make(max_size=1)
        call(lambda: pool.drop(pool.get()))
        await_(lambda: not pool.status().size)
        assert ask(backends) == 0
        with pool.connection() as conn:
            assert query(conn, "select 42") == (42,)
        """),
    )


@each_process
def test_closed_before_a_fork(run, process):
    """An idle connection that the application has closed does not disturb a fork."""
    run(
        process,
        """
        import warnings
        warnings.simplefilter("ignore")
        pools = [make(), make()]
        loans = [pool.get() for pool in pools]
        for pool, loan in zip(pools, loans): pool.put(loan)
        loans[0].conn.close()
        if not (pid := os.fork()):
            os._exit(sum(pool.status().size for pool in pools))
        assert exit_status(pid) == 0
        assert query(loans[1].conn, "select 42") == (42,)
        """,
    )


def test_no_descriptor_for_a_session(run):
    """A new connection that cannot be watched is closed."""
    run(
        "native",
        """
        from psycogreen._pool import sessions
        class NoDescriptor:
            def dup(fd): raise OSError(24, "too many open files")
        real, sessions.os = sessions.os, NoDescriptor
        pool = make(max_size=1)
        try:
            pool.get()
        except OSError as ex:
            await_(lambda: ask(backends) == 0)  # while the error has its traceback
        else:
            raise AssertionError
        sessions.os = real
        with pool.connection(): pass
        """,
    )


def test_no_thread_for_an_end(run):
    """A connection leaves no descriptor if no thread can wait for its end."""
    run(
        "native",
        """
        import _thread
        from psycogreen._pool import keeper
        pool = make(max_size=1)
        loan = pool.get()
        class NoThread:
            def start_new_thread(*_): raise RuntimeError("can't start new thread")
        keeper._thread = NoThread
        before = len(os.listdir("/proc/self/fd"))
        pool.drop(loan)
        assert len(os.listdir("/proc/self/fd")) == before - 2
        assert pool.status().size == 0
        """,
    )


@pytest.mark.parametrize("framework", ["gevent", "eventlet"])
def test_configure_interrupted(run, framework):
    """A session whose configuration fails counts until its server process has ended."""
    run(
        framework,
        f"from {framework} import Timeout"
        + textwrap.dedent("""
        psycogreen.unpatch_psycopg()
        psycogreen.patch_psycopg(cancel_interrupted=False)
        def configure(conn):
            with Timeout(0.1):
                query(conn, "select pg_sleep(1)")
        pool = make(max_size=1, configure=configure)
        for _ in range(2):
            try:
                pool.get()
            except psycopg2.OperationalError as ex:
                assert "interrupted by" in str(ex), ex
            else:
                raise AssertionError
            assert ask(backends) <= 1
        """),
    )


@each_process
def test_configure_must_commit(run, process):
    """*configure* must commit: otherwise an error is raised."""
    run(
        process,
        """
        def configure(conn):
            query(conn, "set statement_timeout to 1234")
        pool = make(max_size=1, configure=configure)
        try:
            pool.get()
        except psycopg2.ProgrammingError as ex:
            assert "must commit" in str(ex), ex
        else:
            raise AssertionError
        await_(lambda: pool.status().size == 0)
        """,
    )


@each_process
def test_dropped_in_a_copy(run, process):
    """The place of a connection that is dropped during a COPY becomes free."""
    run(
        process,
        """
        pool = make(max_size=1)
        loan = pool.get()
        query(loan.conn, "create temp table t (a text)")
        try:
            query(loan.conn, "copy t from stdin")
        except psycopg2.Error:
            pass
        pool.drop(loan)
        await_(lambda: pool.status().size == 0)
        await_(lambda: ask(backends) == 0)
        """,
    )


@each_process
def test_connection_factory(run, process):
    """connection_factory may be an own class, with its own class of cursors."""
    run(
        process,
        """
        from psycopg2.extras import DictConnection, NamedTupleConnection, DictCursor
        class Own(psycopg2.extensions.connection):
            def cursor(self):
                return psycopg2.extensions.cursor(self)
        for factory in DictConnection, NamedTupleConnection, Own:
            pool = make(max_size=1, connection_factory=factory)
            with pool.connection() as conn:
                assert isinstance(conn, factory)
                with conn.cursor() as cursor:
                    cursor.execute("select 42 as answer")
                    row = cursor.fetchone()
                    assert row[0] == 42 and cursor.connection is conn
                    assert getattr(row, "answer", 42) == 42
                if factory is DictConnection:
                    assert row["answer"] == 42
                    with conn.cursor("named") as cursor:
                        cursor.execute("select 42 as answer")
                        assert cursor.fetchone()["answer"] == 42
                pid = conn.get_backend_pid()
                query(conn, "set search_path to nowhere")
            with pool.connection() as conn:
                assert query(conn, "show search_path")[0] != "nowhere"
                assert conn.get_backend_pid() == pid
            pool.close()
        """,
    )


@each_process
def test_closed_meanwhile(run, process):
    """A connection that is being opened when the pool is closed gets closed."""
    run(
        process,
        """
        begun, go_on = threading.Event(), threading.Event()
        def configure(conn):
            begun.set()
            go_on.wait()
        pool = make(max_size=1, configure=configure)
        told = []
        def work():
            try:
                pool.get()
            except PoolClosed as ex:
                told.append(ex)
        waits = threading.Thread(target=work)
        waits.start()
        begun.wait()
        pool.close()
        waits.join()
        assert len(told) == 1
        go_on.set()
        await_(lambda: pool.status().size == 0)
        assert ask(backends) == 0
        """,
    )


@pytest.mark.parametrize("timeout", [-1, float("inf"), float("nan")])
def test_wrong_timeout(timeout):
    """A timeout that would never end is refused."""
    pool = Pool(lambda connection_factory: None)
    with pytest.raises(ValueError, match=re.escape(f"timeout={timeout!r}")):
        pool.get(timeout)


STATEMENTS = {
    "select 1": False,
    "SELECT * FROM t FOR UPDATE": False,
    "(select 1) union (select 2);": False,
    "/* a comment */ -- another\n  insert into t values (1)": False,
    "with x as (select 1) delete from t": False,
    "set local statement_timeout to 1": False,
    "set transaction isolation level serializable": False,
    "declare x cursor for select 1": False,
    "set statement_timeout to 1": True,
    "reset all": True,
    "begin": True,
    "listen x": True,
    "create temp table t ()": True,
    "select 1 into temp t": True,
    "select set_config('a', 'b', false)": True,
    "select pg_try_advisory_lock(1)": True,
    "select pg_advisory_xact_lock(1)": False,
    "select 1; set a to b": True,
    "declare x cursor with hold for select 1": True,
    "selection": True,
    "": True,
    "select 1" + " " * 5000: False,
}


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda text: text[:40].strip())
def test_traces(statement):
    """leaves_traces() returns whether a statement may change its session."""
    assert leaves_traces(statement) == STATEMENTS[statement]


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"min_size": -1}, "min_size=-1"),
        ({"min_size": 5, "max_size": 4}, "max_size=4"),
        ({"min_size": 0}, "max_size=0"),
        ({"timeout": 0}, "timeout=0"),
        ({"max_idle": -1}, "max_idle=-1"),
        ({"max_lifetime": 0}, "max_lifetime=0"),
        ({"max_waiting": -1}, "max_waiting=-1"),
    ],
)
def test_wrong_options(options, wrong):
    """An invalid option of the pool is refused, and shown."""
    with pytest.raises(ValueError, match=re.escape(wrong)):
        Pool(lambda connection_factory: None, **options)
