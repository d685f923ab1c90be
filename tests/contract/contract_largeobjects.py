"""Large objects work as in blocking psycopg2, but cooperatively."""

import re
import time

import psycopg2
import pytest
from psycopg2 import extensions

import psycogreen
from psycogreen._interface import functions, largeobjects

LARGE = bytes(range(256)) * 80_000


class Subclass(extensions.lobject):
    """An application's own class of large objects."""

    def __init__(self, *args):
        """Take psycopg2's arguments."""
        super().__init__(*args)
        self.extra = "extra"


def use(conn, path):
    """Use the whole interface of a large object; return all results."""
    thing = conn.lobject(0, "wb", 0)
    oid = thing.oid
    seen = [thing.mode, thing.write(b"some data"), thing.tell(), thing.seek(-4, 2)]
    seen += [thing.write("\u00fc"), thing.closed, thing.close(), thing.closed]
    thing = conn.lobject(oid, "rb")
    seen += [thing.read(4), thing.read(), thing.read(), thing.seek(2), thing.read(2)]
    thing = conn.lobject(oid, "rt")
    seen += [thing.mode, thing.seek(0), thing.read(5), thing.export(str(path))]
    thing = conn.lobject(oid, "w")
    seen += [thing.truncate(3), thing.truncate(), path.read_bytes()]
    thing = conn.lobject(0, "r", 0, str(path), Subclass)
    seen += [thing.read(), thing.extra, type(thing).__name__, thing.unlink()]
    with pytest.raises(psycopg2.Error) as missing:
        conn.lobject(oid=oid + 100_000, mode="n")
        conn.lobject(oid=oid + 100_000)
    seen += [type(missing.value), missing.value.pgcode, conn.status]
    conn.rollback()
    for arguments in (["x"], [0, 5], [0, "z"], [0, "r", 0, "/no/such/file"], [1, 2, 3]):
        with pytest.raises(Exception) as wrong:  # noqa: PT011
            conn.lobject(*arguments)
        seen.append((type(wrong.value), str(wrong.value)))
        conn.rollback()
    seen += refused(conn)
    thing = conn.lobject()
    conn.commit()
    with pytest.raises(psycopg2.ProgrammingError) as late:
        thing.read()
    conn.autocommit = True
    with pytest.raises(psycopg2.ProgrammingError) as outside:
        conn.lobject()
    conn.autocommit = False
    with pytest.raises(TypeError) as factory:
        conn.lobject(lobject_factory=lambda *_: 5)
    return [*seen, *(str(each.value) for each in (late, outside, factory))]


def refused(conn):
    """Return all that comes out of calls that are refused, by psycopg2 or the server."""
    oid = conn.lobject().oid
    thing = conn.lobject(oid, "rb")
    calls = [
        *(lambda: thing.read("x"), lambda: thing.read(1, 2), lambda: thing.read(2**70)),
        *(thing.write, lambda: thing.write(5), lambda: thing.write(bytearray(b"x"))),
        lambda: thing.write(b"x"),  # it is open for reading only
        # From here on the transaction has failed.
        *(lambda: thing.write(b""), thing.read, lambda: thing.read(0)),
        lambda: thing.write("x"),
    ]
    outcomes = []
    for call in calls:
        with pytest.raises(Exception) as wrong:  # noqa: PT011
            call()
        diag = getattr(wrong.value, "diag", None)
        outcomes.append(
            (
                type(wrong.value),
                # The server's number depends on whether an earlier one was collected.
                re.sub(r"descriptor \d+", "descriptor", str(wrong.value)).replace(
                    str(oid), "oid"
                ),
                getattr(wrong.value, "pgcode", None),
                getattr(wrong.value, "pgerror", None),
                getattr(diag, "severity", None),
            )
        )
    conn.rollback()
    thing = conn.lobject()
    thing.close()
    for call in thing.read, lambda: thing.write(b"x"):
        with pytest.raises(psycopg2.InterfaceError) as wrong:
            call()
        outcomes.append(str(wrong.value))
    conn.rollback()
    return outcomes


def test_same_as_blocking(green, connect, tmp_path):
    """Large objects have the same results and errors as in blocking psycopg2."""
    with psycogreen.blocking():
        expected = use(connect(), tmp_path / "expected")
    assert use(connect(), tmp_path / "copy") == expected


def test_large(green, conn):
    """A large object of 20 MB is written and read in one call; the loop goes on."""
    thing = conn.lobject(mode="wb")
    with green.ticking(1):
        assert thing.write(LARGE) == len(LARGE)
    thing.seek(0)
    with green.ticking(1):
        assert thing.read() == LARGE


def test_pieces(green, conn):
    """Whatever the sizes, what was written is read, text too."""
    text = "\u20ac" * 300_000  # three bytes each: pieces end between them
    thing = conn.lobject(mode="wt")
    assert thing.write(text) == len(text.encode())
    thing.seek(0)
    assert thing.read() == text
    thing = conn.lobject(thing.oid, "rb")
    sizes = [1, largeobjects.PIECE, 300_000, 5, -1, 10]
    assert b"".join(map(thing.read, sizes)).decode() == text
    assert thing.read(10) == b""


def test_opened_while_it_blocked(green, connect):
    """A connection that was opened while psycopg2 blocked waits cooperatively, too."""
    with psycogreen.blocking():
        conn = connect()
    thing = conn.lobject(mode="wb")
    with green.ticking(1):
        assert thing.write(LARGE) == len(LARGE)
        thing.seek(0)
        assert thing.read() == LARGE


def test_blocking(green, conn):
    """Inside blocking() the same works, also what had begun before it."""
    thing = conn.lobject(mode="wb")
    with psycogreen.blocking():
        assert thing.write(LARGE) == len(LARGE)
        thing.seek(0)
        assert thing.read() == LARGE
        # The next piece of a call that began outside.
        value = functions.call(conn, b"select pg_catalog.lo_creat($1)", b"\0\0\0\1")
        assert int.from_bytes(value) > 0


def test_beyond_2_gb(green, conn):
    """Positions beyond 2 GB in a large object work."""
    far = 3 * 2**30
    thing = conn.lobject(mode="wb")
    assert thing.seek(far) == far
    thing.write(b"end")
    assert thing.tell() == far + 3
    thing.truncate(far + 1)
    thing.seek(far)
    assert thing.read() == b"e"


def test_between_queries(green, conn):
    """Queries before and after the use of a large object wait cooperatively."""
    cursor = conn.cursor()
    for _ in range(3):
        thing = conn.lobject(mode="wb")
        thing.write(b"x" * 100_000)
        with green.ticking():
            cursor.execute("select pg_sleep(0.05), %s", ["x" * 1_000_000])
        thing.close()
    conn.rollback()


def test_other_ways_to_make_it(green, conn):
    """A large object that was made in blocking mode is cooperative from its next call."""
    with psycogreen.blocking():
        thing = conn.lobject(mode="wb")
    assert thing.write(LARGE) == len(LARGE)
    psycogreen.unpatch_psycopg()
    thing.seek(0)
    assert thing.read(5) == LARGE[:5]


@pytest.fixture
def locked(connect):
    """A large object to write to, with the connection that keeps it from being written."""
    conn, other = connect(), connect()
    oid = conn.lobject(mode="wb").oid
    conn.commit()
    other.cursor().execute("select lo_put(%s, 0, 'x')", [oid])
    return conn, conn.lobject(oid, "wb"), other


def until_it_waits(green, conn, connect):
    """Let others run until the server makes *conn* wait for a lock."""
    query = "select count(*) from pg_locks where pid = %s and not granted"
    watcher = connect()
    watcher.autocommit = True
    cursor = watcher.cursor()
    deadline = time.monotonic() + 30
    while True:
        cursor.execute(query, [conn.info.backend_pid])
        if cursor.fetchone()[0]:
            return
        assert time.monotonic() < deadline
        green.sleep(0.01)


@pytest.mark.parametrize("name", ["commit", "rollback", "query", "large object"])
def test_others_wait_their_turn(green, locked, connect, name):
    """Other greenlets wait for the end of a large object's call to use the connection."""
    conn, thing, other = locked

    def use():
        if name == "query":
            cursor = conn.cursor()
            cursor.execute("select 42")
            return cursor.fetchone()[0]
        if name == "large object":
            return conn.lobject(mode="wb").write(b"other")
        return getattr(conn, name)()

    task = green.spawn(thing.write, b"data")
    until_it_waits(green, conn, connect)
    second = green.spawn(use)
    with green.ticking():
        green.sleep(0.1)
    other.rollback()
    assert green.wait(task) == 4
    assert green.wait(second) == {"query": 42, "large object": 5}.get(name)
    conn.rollback()


@pytest.mark.parametrize("how", ["timeout", "kill"])
def test_interrupted(green, locked, how):
    """A timeout or kill during a large object's call closes the connection."""
    conn, thing, other = locked
    ended = []

    def write():
        try:
            with green.Timeout(0.2 if how == "timeout" else 60):
                thing.write(b"y")
        except BaseException as ex:
            ended.append(ex)
            raise

    task = green.spawn(write)
    with green.ticking():
        green.sleep(0.1)
        if how == "kill":
            green.kill(task)
        while not ended:
            green.sleep(0.01)
    assert not isinstance(ended[0], psycopg2.Error)
    assert conn.closed
    other.rollback()


def test_server_hangs_up(green, connect):
    """If the session ends during a large object's call, the connection is closed."""
    conn, other = connect(), connect()
    other.autocommit = True
    thing = conn.lobject(mode="wb")
    other.cursor().execute(
        "select pg_terminate_backend(%s, 10000)", [conn.info.backend_pid]
    )
    with pytest.raises(psycopg2.OperationalError):
        thing.write(LARGE)
    assert conn.closed


def test_two_at_once(green, conn):
    """Large object calls of two greenlets on one connection take turns."""
    things = [conn.lobject(mode="wb") for _ in range(2)]
    tasks = [green.spawn(thing.write, LARGE) for thing in things]
    assert [green.wait(task) for task in tasks] == [len(LARGE)] * 2
    for thing in things:
        thing.seek(0)
        assert thing.read() == LARGE
