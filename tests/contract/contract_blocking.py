"""Blocks in which psycopg2 blocks: for COPY and large objects."""

import _socket
import io
import os

import psycopg2
import pytest
from psycopg2.extensions import get_wait_callback, set_wait_callback
from psycopg2.extras import wait_select

import psycogreen
from psycogreen._interface import blocking, sending
from psycogreen._wait import native
from psycogreen._wait.libpq import libpq


@pytest.fixture
def table(conn):
    """A cursor, and a table to copy to."""
    cursor = conn.cursor()
    cursor.execute("create temporary table copied (n int, t text)")
    return cursor


def test_copy(green, table):
    """copy_from, copy_to and copy_expert work inside a blocking() block."""
    with psycogreen.blocking():
        table.copy_from(io.StringIO("1\tone\n2\ttwo\n"), "copied")
    table.execute("select * from copied order by n")
    assert table.fetchall() == [(1, "one"), (2, "two")]
    out = io.StringIO()
    with psycogreen.blocking():
        table.copy_to(out, "copied")
        table.copy_expert("copy (select 3, 'three') to stdout", out)
    assert out.getvalue() == "1\tone\n2\ttwo\n3\tthree\n"
    with green.ticking():
        table.execute("select pg_sleep(0.1)")


def test_large_copy(green, table):
    """A COPY larger than the socket's buffer is complete inside a blocking() block."""
    rows = 300_000
    data = io.StringIO("".join(f"{n}\t{'x' * 100}\n" for n in range(rows)))
    with psycogreen.blocking():
        table.copy_from(data, "copied")
    table.execute("select count(*), sum(n), min(length(t)) from copied")
    assert table.fetchone() == (rows, rows * (rows - 1) // 2, 100)


def test_large_object(green, conn):
    """Large objects are made, read and removed inside a blocking() block."""
    with psycogreen.blocking():
        thing = conn.lobject(mode="wb")
        thing.write(b"x" * 1_000_000)
        thing.close()
        again = conn.lobject(thing.oid, "rb")
        assert again.read() == b"x" * 1_000_000
        again.unlink()
    conn.commit()


def test_blocks(green, conn):
    """psycopg2 blocks the loop inside a blocking() block, and not outside it."""
    with green.ticking(0) as ticker:
        with psycogreen.blocking():
            assert get_wait_callback() is None
            assert psycogreen.status().callback is None
            conn.cursor().execute("select pg_sleep(0.2)")
        assert ticker.ticks == 0
        conn.cursor().execute("select pg_sleep(0.2)")
        assert ticker.ticks > 2


def test_connect(green, dsn):
    """A connection can be opened inside a blocking() block and used outside."""
    with psycogreen.blocking():
        conn = psycopg2.connect(dsn)
    with green.ticking():
        conn.cursor().execute("select pg_sleep(0.1)")
    conn.close()


def test_nested(green):
    """The callback is restored at the end of the outermost of nested blocking() blocks."""
    with psycogreen.blocking():
        with psycogreen.blocking():
            assert get_wait_callback() is None
        assert get_wait_callback() is None
    assert get_wait_callback() is green.callback


def test_exception(green):
    """An exception leaves a blocking() block and restores the callback."""
    with pytest.raises(ZeroDivisionError), psycogreen.blocking():
        1 / 0  # noqa: B018
    assert get_wait_callback() is green.callback


@pytest.mark.parametrize("first_out", [0, 1])
def test_overlapping_greenlets(green, first_out):
    """Overlapping blocking() blocks of greenlets may end in any order."""
    leave = [False, False]

    def block(n):
        with psycogreen.blocking():
            while not leave[n]:
                green.sleep(0)

    tasks = [green.spawn(block, n) for n in range(2)]
    green.sleep(0.01)
    assert get_wait_callback() is None
    leave[first_out] = True
    green.wait(tasks[first_out])
    assert get_wait_callback() is None
    leave[not first_out] = True
    green.wait(tasks[not first_out])
    assert get_wait_callback() is green.callback


def test_killed(green):
    """A greenlet that is killed inside a blocking() block leaves the block."""

    def block():
        with psycogreen.blocking():
            green.sleep(60)

    task = green.spawn(block)
    green.sleep(0.01)
    assert get_wait_callback() is None
    green.kill(task)
    green.sleep(0.01)
    assert get_wait_callback() is green.callback


def test_overlapping_threads(green):
    """Many native threads enter and leave blocking() blocks at the same time."""
    native_sleep = native.original("time", "sleep")
    ended, wrong = [], []

    def blocks():
        for _ in range(500):
            with psycogreen.blocking():
                if get_wait_callback() is not None:
                    wrong.append(get_wait_callback())
                native_sleep(0)
        ended.append(True)

    for _ in range(8):
        native.start_thread(blocks)
    while len(ended) < 8:
        native_sleep(0.01)
    assert not wrong
    assert get_wait_callback() is green.callback


def test_patched_inside(green):
    """Patching or unpatching inside a blocking() block takes effect at its end."""
    with psycogreen.blocking():
        psycogreen.unpatch_psycopg()
    assert get_wait_callback() is None
    with psycogreen.blocking():
        psycogreen.patch_psycopg()
        assert get_wait_callback() is None
    assert get_wait_callback() is green.callback


def test_nothing_installed(green):
    """A blocking() block changes nothing if no callback is installed."""
    psycogreen.unpatch_psycopg()
    with psycogreen.blocking():
        assert get_wait_callback() is None
    assert get_wait_callback() is None


def test_foreign_callback(green):
    """A foreign callback is removed inside a blocking() block and restored after it."""
    psycogreen.unpatch_psycopg()
    set_wait_callback(wait_select)
    with psycogreen.blocking():
        assert get_wait_callback() is None
    assert get_wait_callback() is wait_select


def test_callback_set_inside(green):
    """A callback that is set inside a blocking() block stays."""
    with psycogreen.blocking():
        set_wait_callback(wait_select)
    assert get_wait_callback() is wait_select


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_during_a_block_of_another_thread(green):
    """A forked child drops the blocking() blocks of the parent's other threads."""
    native_sleep = native.original("time", "sleep")
    state = []

    def block():
        with psycogreen.blocking():
            state.append("entered")
            while "leave" not in state:
                native_sleep(0.01)
        state.append("left")

    native.start_thread(block)
    while "entered" not in state:
        native_sleep(0.01)
    pid = native.original("os", "fork")()
    if not pid:
        os._exit(0 if get_wait_callback() is green.callback else 1)
    assert os.waitstatus_to_exitcode(native.original("os", "waitpid")(pid, 0)[1]) == 0
    state.append("leave")
    while "left" not in state:
        native_sleep(0.01)
    assert not blocking._blocks
    assert get_wait_callback() is green.callback


def may_block(conn):
    """Return whether libpq may block while it sends; use the connection first."""
    conn.cursor().execute("select 1")
    return not libpq().PQisnonblocking(conn.pgconn_ptr)


def test_sending(green, connect):
    """Sending may block in libpq where psycopg2 blocks, and nowhere else."""
    psycogreen.unpatch_psycopg()
    before = connect()
    psycogreen.patch_psycopg()
    conn = connect()
    with psycogreen.blocking():
        inside = connect()
    for _ in range(2):
        assert not may_block(before)
        assert not may_block(conn)
        assert not may_block(inside)
        with psycogreen.blocking():
            assert may_block(before)
            assert may_block(conn)
            assert may_block(inside)


@pytest.mark.parametrize("name", ["commit", "rollback", "close"])
def test_connection_without_a_statement(green, connect, name):
    """A connection is prepared for large statements at its first one, not before."""
    conn = connect()
    getattr(conn, name)()
    assert id(conn) not in sending._known
    if not conn.closed:
        conn.cursor().execute("select 1")
        assert id(conn) in sending._known


def test_buffer_of_a_unix_socket(green, connect):
    """A unix socket's send buffer is as large as the system allows."""
    unix = psycopg2.connect(os.environ["PSYCOGREEN_TEST_UNIX_DSN"])
    assert not may_block(unix)
    sock = _socket.socket(fileno=os.dup(unix.fileno()))
    enlarged = _socket.socket(_socket.AF_UNIX)
    usual = send_buffer(enlarged)
    enlarged.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, sending.BUFFER)
    assert send_buffer(sock) == send_buffer(enlarged) > usual
    unix.close()
    sock.close()
    enlarged.close()


def send_buffer(sock):
    """Return the size of a socket's buffer, in bytes."""
    return sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF)


def test_blocks_and_calls_overlap(green, monkeypatch):
    """A block that overlaps with the call of a refused method has its full effect."""
    changes = []
    monkeypatch.setattr(
        blocking, "on_change", [lambda: changes.append(blocking.waits())]
    )

    def call():
        assert get_wait_callback() is None
        assert blocking.waits()
        with psycogreen.blocking():
            assert not blocking.waits()
        return 5

    assert blocking.call_refused(call) == 5
    assert get_wait_callback() is green.callback
    assert blocking.waits()
    assert changes == [False, True]
