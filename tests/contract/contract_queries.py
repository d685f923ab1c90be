"""Every kind of query works while the loop goes on."""

import hashlib
import os
import select

import psycopg2
import psycopg2.extras
import pytest
from psycopg2 import errors, extensions
from run import BACKENDS

import psycogreen

SLEEP = "pg_sleep(0.1)"


def test_backend(green):
    """The loop and the twin are those that the backend selects."""
    [(variable, value)] = BACKENDS[os.environ["PSYCOGREEN_TEST_BACKEND"]].items()
    pure = variable == "PSYCOGREEN_PURE"
    assert psycogreen.status().compiled is not pure
    if not pure:
        assert value.split("-")[0] in green.loop_name()


def test_status(green):
    """The status names the callback and the monkey patch."""
    status = psycogreen.status()
    assert status.framework == green.name
    assert status.callback == f"psycogreen.{green.name}.{green.name}_wait_callback"
    assert status.monkey_patched
    assert status.pid == os.getpid()


def test_query(green, conn):
    """A query returns its rows, and other greenlets run meanwhile."""
    cursor = conn.cursor()
    with green.ticking():
        cursor.execute(f"select %s, {SLEEP}", ("hello",))
    assert cursor.fetchall() == [("hello", "")]


@pytest.mark.full
def test_long_query(green, conn):
    """The loop goes on during a query of 10 seconds."""
    with green.ticking(at_least=500) as ticker:
        conn.cursor().execute("select pg_sleep(10)")
    # 50 ms is the aim and the figure to expect; the bound allows for noise.
    assert ticker.longest_stall < 0.5
    print(f"longest stall: {ticker.longest_stall * 1000:.1f} ms")


def test_queries_overlap(green, connect):
    """Queries on several connections run concurrently on the server."""
    conns = [connect() for _ in range(20)]
    observer, holder = connect().cursor(), connect().cursor()
    holder.execute("select pg_advisory_xact_lock(1)")

    def query(conn):
        conn.cursor().execute("select pg_advisory_xact_lock_shared(1) /* overlap */")

    tasks = [green.spawn(query, conn) for conn in conns]
    at_once = 0
    while at_once < 20:
        green.sleep(0.01)
        observer.execute(
            "select count(*) from pg_stat_activity where state = 'active'"
            " and query like '%overlap */'"
        )
        [at_once] = observer.fetchone()
        observer.connection.rollback()
    holder.connection.rollback()
    for task in tasks:
        green.wait(task)


def test_unix_socket(green):
    """A query over a unix socket lets the loop go on."""
    conn = psycopg2.connect(os.environ["PSYCOGREEN_TEST_UNIX_DSN"])
    with green.ticking():
        conn.cursor().execute(f"select {SLEEP}")
    conn.close()


def test_error(green, conn):
    """An error in the query leaves the connection usable."""
    cursor = conn.cursor()
    with green.ticking(), pytest.raises(errors.DivisionByZero):
        cursor.execute(f"select 1 / (length({SLEEP}::text))")
    conn.rollback()
    cursor.execute("select 1")
    assert cursor.fetchone() == (1,)


def test_transaction(green, connect):
    """A commit keeps the changes, and a rollback undoes them."""
    conn, other = connect(), connect()
    cursor = conn.cursor()
    cursor.execute("drop table if exists transaction_test")
    cursor.execute("create table transaction_test (n int)")
    conn.commit()
    with green.ticking():
        with conn:
            cursor.execute(f"insert into transaction_test select 1 from {SLEEP}")
        cursor.execute(f"insert into transaction_test select 2 from {SLEEP}")
        conn.rollback()
    reader = other.cursor()
    reader.execute("select n from transaction_test")
    assert reader.fetchall() == [(1,)]


def test_deferred_commit(green, conn):
    """Other greenlets run during a long commit."""
    cursor = conn.cursor()
    cursor.execute(
        """
        create temporary table slow_commit (n int);
        create function pg_temp.wait() returns trigger language plpgsql
            as 'begin perform pg_sleep(0.1); return null; end';
        create constraint trigger wait after insert on slow_commit
            deferrable initially deferred for each row
            execute function pg_temp.wait()
        """
    )
    conn.commit()
    cursor.execute("insert into slow_commit values (1)")
    with green.ticking():
        conn.commit()


def test_lock(green, connect):
    """A greenlet waits for a row that another one has locked; the loop goes on."""
    holder, waiter = connect(), connect()
    setup = holder.cursor()
    setup.execute("drop table if exists lock_test")
    setup.execute("create table lock_test as select 1 as n")
    holder.commit()
    setup.execute("select n from lock_test for update")
    order = []

    def update():
        waiter.cursor().execute("update lock_test set n = 2")
        order.append("updated")

    task = green.spawn(update)
    with green.ticking():
        green.sleep(0.1)
    order.append("released")
    holder.commit()
    green.wait(task)
    assert order == ["released", "updated"]


def test_named_cursor(green, conn):
    """A server-side cursor fetches its rows in portions."""
    with conn.cursor("portions") as cursor:
        cursor.itersize = 3
        with green.ticking():
            cursor.execute("select n, pg_sleep(0.02) from generate_series(1, 10) n")
            assert [n for n, _ in cursor] == list(range(1, 11))
        cursor.scroll(0, mode="absolute")
        assert [n for n, _ in cursor.fetchmany(2)] == [1, 2]


def test_executemany(green, conn):
    """executemany() waits cooperatively for each statement."""
    cursor = conn.cursor()
    cursor.execute("create temporary table many (n int)")
    with green.ticking():
        cursor.executemany(
            "insert into many select %s from pg_sleep(0.02)", [(n,) for n in range(10)]
        )
    cursor.execute("select count(*) from many")
    assert cursor.fetchone() == (10,)


def test_execute_values(green, conn):
    """execute_values() of psycopg2.extras works with more than one page."""
    cursor = conn.cursor()
    cursor.execute("create temporary table pages (n int)")
    psycopg2.extras.execute_values(
        cursor, "insert into pages values %s", [(n,) for n in range(250)]
    )
    cursor.execute("select count(*) from pages")
    assert cursor.fetchone() == (250,)


def test_notice(green, conn):
    """Notices arrive, also while the query still runs."""
    with green.ticking():
        conn.cursor().execute(
            "do $$ begin raise notice 'one'; perform pg_sleep(0.1);"
            " raise notice 'two'; end $$"
        )
    assert [notice.split()[-1] for notice in conn.notices] == ["one", "two"]


def test_notify(green, connect):
    """A listener that waits for its socket receives a notification."""
    listener, sender = connect(), connect()
    for conn in listener, sender:
        conn.set_session(autocommit=True)
    listener.cursor().execute("listen news")

    def listen():
        select.select([listener], [], [], 30)
        listener.poll()
        return listener.notifies.pop()

    task = green.spawn(listen)
    with green.ticking():
        green.sleep(0.1)
    sender.cursor().execute("notify news, 'extra'")
    notification = green.wait(task)
    assert (notification.channel, notification.payload) == ("news", "extra")


def test_large_result(green, conn):
    """A result of 50 MB is complete."""
    cursor = conn.cursor()
    with green.ticking():
        cursor.execute("select n, repeat('x', 1000) from generate_series(1, 50000) n")
    assert cursor.rowcount == 50000
    assert all(len(text) == 1000 for _, text in cursor)


def test_large_parameter(green, conn):
    """A parameter of 20 MB arrives complete."""
    cursor = conn.cursor()
    text = "0123456789" * 2_000_000
    with green.ticking():
        cursor.execute(f"select md5(%s), {SLEEP}", (text,))
    assert cursor.fetchone()[0] == hashlib.md5(text.encode()).hexdigest()


def test_asynchronous_connection(green, dsn):
    """The callback also waits for psycopg2's own asynchronous connections."""
    conn = psycopg2.connect(dsn, async_=True)
    green.callback(conn)
    cursor = conn.cursor()
    with green.ticking():
        cursor.execute(f"select 42, {SLEEP}")
        green.callback(conn)
    assert cursor.fetchone()[0] == 42
    with pytest.raises(errors.DivisionByZero):
        cursor.execute("select 1 / 0")
        green.callback(conn)
    cursor.execute("select 43")
    green.callback(conn)
    assert cursor.fetchone() == (43,)
    conn.close()


def test_ssl_refused(green, dsn):
    """If SSL is required and the server has none, connecting raises the usual error."""
    with pytest.raises(psycopg2.OperationalError, match="SSL"):
        psycopg2.connect(dsn, sslmode="require")


def test_ssl_preferred(green, dsn):
    """If SSL is preferred and the server has none, the connection is unencrypted."""
    psycopg2.connect(dsn, sslmode="prefer").close()


def test_password(green, dsn):
    """The right password connects, and a wrong one raises the usual error."""
    user = {"user": "with_password"}
    psycopg2.connect(dsn, **user, password="right").close()
    with pytest.raises(
        psycopg2.OperationalError, match="password authentication failed"
    ):
        psycopg2.connect(dsn, **user, password="wrong")


def test_connection_refused(green):
    """A port without a server raises the usual error."""
    with pytest.raises(psycopg2.OperationalError, match="refused"):
        psycopg2.connect("host=127.0.0.1 port=1")


def test_terminated(green, connect):
    """A backend that is terminated during a query raises the usual error."""
    conn, other = connect(), connect()
    task = green.spawn(conn.cursor().execute, "select pg_sleep(10)")
    with green.ticking():
        green.sleep(0.1)
    other.cursor().execute("select pg_terminate_backend(%s)", (conn.info.backend_pid,))
    with pytest.raises(psycopg2.OperationalError, match="terminating connection"):
        green.wait(task)
    assert conn.closed


def use(method, *arguments):
    """Return a function that calls a method of a cursor."""
    return lambda cursor: getattr(cursor, method)(*arguments)


def use_connection(method, *arguments):
    """Return a function that calls a method of the cursor's connection."""
    return lambda cursor: getattr(cursor.connection, method)(*arguments)


USES = {
    "execute": use("execute", "select 1"),
    "executemany": use("executemany", "select %s", [(1,)]),
    "callproc": use("callproc", "now"),
    "fetchone": use("fetchone"),
    "fetchmany": use("fetchmany"),
    "fetchall": use("fetchall"),
    "next": next,
    "scroll": use("scroll", 1),
    "close": use("close"),
    "commit": use_connection("commit"),
    "rollback": use_connection("rollback"),
    "reset": use_connection("reset"),
    "set_client_encoding": use_connection("set_client_encoding", "latin1"),
}
OF_NAMED = ("fetchone", "fetchmany", "fetchall", "next", "scroll", "close")
STATES = ("idle", "in transaction", "autocommit")
LOST = [
    *((name, "in transaction") for name in OF_NAMED),
    *((name, state) for name in USES if name not in OF_NAMED for state in STATES),
]


@pytest.mark.parametrize(("name", "state"), LOST)
def test_error_of_an_ended_session(green, connect, name, state):
    """The error of an ended session has the class, pgerror and cursor of blocking mode."""

    def fail():
        conn, other = connect(), connect()
        conn.autocommit = state == "autocommit"
        cursor = conn.cursor("named" if name in OF_NAMED else None)
        if state == "in transaction":
            cursor.execute("select generate_series(1, 1000)")
        pid = conn.info.backend_pid
        other.cursor().execute("select pg_terminate_backend(%s, 10000)", (pid,))
        try:
            USES[name](cursor)
        except psycopg2.Error as ex:
            return type(ex), ex.pgerror == str(ex), ex.cursor is cursor, conn.closed
        return conn.closed

    with psycogreen.blocking():
        blocking = fail()
    assert fail() == blocking


def test_isolation_level(green, connect):
    """Setting the isolation level waits cooperatively."""
    conn = connect()
    conn.set_session(isolation_level=extensions.ISOLATION_LEVEL_SERIALIZABLE)
    cursor = conn.cursor()
    cursor.execute("show transaction_isolation")
    assert cursor.fetchone() == ("serializable",)


def test_client_encoding(green, conn):
    """set_client_encoding(), which sends a query, waits cooperatively."""
    conn.set_client_encoding("LATIN1")
    cursor = conn.cursor()
    cursor.execute("select 'é'")
    assert cursor.fetchone() == ("é",)
