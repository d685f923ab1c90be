"""COPY works as in blocking psycopg2, but cooperatively."""

import contextlib
import gc
import io
import weakref

import frameworks
import psycopg2
import pytest
from psycopg2 import extensions, extras

import psycogreen
from psycogreen._interface import copying, failures, members, replacing


class BadFile:
    """A file that cannot be read or written."""

    def read(self, size):
        """Fail."""
        size // 0

    def write(self, data):
        """Fail."""
        len(data) // 0


class Untold(Exception):
    """An error without a text."""

    def __str__(self):
        """Fail."""
        raise self


class Reader:
    """A file to read, which returns the given pieces."""

    def __init__(self, *pieces):
        """Return *pieces*, and no more."""
        self._pieces = iter(pieces)

    def read(self, size):
        """Return the next one."""
        return next(self._pieces, b"")


class Raiser:
    """A file to read, which raises an exception."""

    def __init__(self, error):
        """Raise *error*."""
        self._error = error

    def read(self, size):
        """Raise it."""
        raise self._error


class Writer:
    """A file to write only, which calls a function."""

    def __init__(self, write):
        """Let *write* be called."""
        self.write = write


@pytest.fixture
def table(conn):
    """A cursor, and a table to copy to."""
    cursor = conn.cursor()
    cursor.execute("create temporary table copied (n int, t text)")
    conn.commit()
    return cursor


def text(rows):
    """Return as many rows as text."""
    return "".join(f"{n}\trow number {n % 10}\n" for n in range(rows))


def outcome(connect, operation):
    """Return everything that an application can see of an operation."""
    conn = connect()
    cursor = conn.cursor()
    cursor.execute("create temporary table copied (n int, t text)")
    cursor.execute("insert into copied values (1, 'one'), (2, 'zw\u00f6lf')")
    conn.commit()
    try:
        result = operation(cursor)
    except Exception as ex:
        diag = getattr(ex, "diag", None)
        result = (
            type(ex),
            str(ex),
            getattr(ex, "pgcode", None),
            getattr(ex, "pgerror", None),
            getattr(diag, "context", None),
            getattr(diag, "statement_position", None),
            getattr(ex, "cursor", None) is cursor,
        )
    state = (
        cursor.rowcount,
        cursor.statusmessage,
        cursor.query,
        cursor.description,
        conn.status,
        conn.closed,
        conn.notices,
    )
    try:
        cursor.execute("select count(*), min(n), max(t) from copied")
        after = cursor.fetchall()
    except psycopg2.Error as ex:
        after = str(ex)
    conn.rollback()
    cursor.execute("select * from copied order by n")
    return result, state, after, cursor.fetchall()


def copied_to(file, copy):
    """Return what *copy* returns, and the content of *file* after it."""
    return copy(file), file.getvalue()


OPERATIONS = {
    "from text": lambda c: c.copy_from(io.StringIO("3\tdrei\n4\t\u00fc\n"), "copied"),
    "from binary": lambda c: c.copy_from(io.BytesIO(b"3\tdrei\n4\tvier\n"), "copied"),
    "from nothing": lambda c: c.copy_from(io.BytesIO(), "copied"),
    "from, all arguments": lambda c: c.copy_from(
        io.BytesIO(b"t\\wo|5\n6|6\n"), "copied", "|", "t\\wo", 3, ("t", "n")
    ),
    "from, by name": lambda c: c.copy_from(
        file=io.StringIO("3,-\n"), table="copied", sep=",", null="-", columns=["n", "t"]
    ),
    "from, generator": lambda c: c.copy_from(
        io.StringIO("3\n"), "copied", columns=(name for name in "n")
    ),
    "from, no columns": lambda c: c.copy_from(io.StringIO("3\n"), "copied", columns=[]),
    "from, quoted name": lambda c: c.copy_from(io.StringIO(""), 'no "such" table'),
    "from, invalid row": lambda c: c.copy_from(io.StringIO("3\tx\nx\ty\n"), "copied"),
    "from, invalid row early": lambda c: c.copy_from(
        io.StringIO("x\tx\n" + text(50_000)), "copied"
    ),
    "from, read fails": lambda c: c.copy_from(BadFile(), "copied"),
    "from, read stops": lambda c: c.copy_from(Raiser(StopIteration(5)), "copied"),
    "from, untold error": lambda c: c.copy_from(Raiser(Untold()), "copied"),
    "from, read fails late": lambda c: c.copy_from(Reader(b"3\tx\n", 5), "copied"),
    "from, not encodable": lambda c: (
        c.connection.set_client_encoding("latin1"),
        c.copy_from(Reader("3\t\u20ac\n"), "copied"),
    ),
    "from, no file": lambda c: c.copy_from(5, "copied"),
    "from, bad size": lambda c: c.copy_from(io.StringIO(), "copied", size="x"),
    "from, bad table": lambda c: c.copy_from(io.StringIO(), 5),
    "from, bad columns": lambda c: c.copy_from(io.StringIO(), "copied", columns=5),
    "from, bad column": lambda c: c.copy_from(io.StringIO(), "copied", columns=[5]),
    "from, null in name": lambda c: c.copy_from(io.StringIO(), "a\0b"),
    "from, no arguments": lambda c: c.copy_from(),
    "to text": lambda c: copied_to(io.StringIO(), lambda f: c.copy_to(f, "copied")),
    "to binary": lambda c: copied_to(io.BytesIO(), lambda f: c.copy_to(f, "copied")),
    "to, all arguments": lambda c: copied_to(
        io.StringIO(), lambda f: c.copy_to(f, "copied", "|", "one", ["t"])
    ),
    "to, no such table": lambda c: c.copy_to(io.StringIO(), "nowhere"),
    "to, latin1": lambda c: (
        c.connection.set_client_encoding("latin1"),
        copied_to(io.StringIO(), lambda f: c.copy_to(f, "copied")),
        copied_to(io.BytesIO(), lambda f: c.copy_to(f, "copied")),
    ),
    "to, write fails": lambda c: c.copy_to(BadFile(), "copied"),
    "to, no file": lambda c: c.copy_to(5, "copied"),
    "to, unknown argument": lambda c: c.copy_to(io.StringIO(), "copied", size=5),
    "expert, out": lambda c: copied_to(
        io.BytesIO(),
        lambda f: c.copy_expert("copy copied to stdout (format csv, header)", f),
    ),
    "expert, binary": lambda c: copied_to(
        io.BytesIO(),
        lambda f: c.copy_expert("copy copied to stdout (format binary)", f),
    ),
    "expert, in": lambda c: c.copy_expert(
        "copy copied from stdin csv", io.StringIO("3,drei\n"), 2
    ),
    "expert, composed": lambda c: c.copy_expert(
        psycopg2.sql.SQL("copy {} from stdin").format(
            psycopg2.sql.Identifier("copied")
        ),
        io.StringIO("3\tdrei\n"),
    ),
    "expert, syntax": lambda c: c.copy_expert("copy copied too stdout", io.StringIO()),
    "expert, no copy": lambda c: c.copy_expert("select 1 as one", io.StringIO()),
    "expert, two statements": lambda c: copied_to(
        io.StringIO(), lambda f: c.copy_expert("select 1; copy copied to stdout", f)
    ),
    "expert, error in the middle": lambda c: copied_to(
        io.StringIO(),
        lambda f: c.copy_expert(
            "copy (select 1 / (5000 - n) from generate_series(1, 9000) n) to stdout", f
        ),
    ),
    "expert, no read": lambda c: c.copy_expert("copy copied from stdin", Writer(print)),
    "expert, no write": lambda c: c.copy_expert("copy copied to stdout", Reader()),
    "expert, no file": lambda c: c.copy_expert("copy copied to stdout", 5),
    "expert, bad statement": lambda c: c.copy_expert(5, io.StringIO()),
    "closed cursor": lambda c: (c.close(), c.copy_to(io.StringIO(), "copied")),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_same_as_blocking(green, connect, name):
    """A COPY method has the same results and errors as in blocking psycopg2."""
    if name == "closed cursor":
        for copies in (False, True):
            cursor = connect().cursor()
            cursor.close()
            with pytest.raises(psycopg2.InterfaceError, match="cursor already closed"):
                cursor.copy_to(io.StringIO(), "copied") if copies else cursor.fetchone()
        return
    with psycogreen.blocking():
        expected = outcome(connect, OPERATIONS[name])
    assert outcome(connect, OPERATIONS[name]) == expected


def test_large(green, table):
    """A COPY larger than the socket's buffer is complete in both directions."""
    data = text(300_000)
    with green.ticking(2):
        table.copy_from(io.StringIO(data), "copied", size=1_000_000)
    assert table.rowcount == 300_000
    out = io.StringIO()
    with green.ticking(2):
        table.copy_to(out, "copied")
    assert out.getvalue() == data
    assert table.rowcount == 300_000


def test_slow_server(green, table):
    """Other greenlets run while the server works on a COPY."""
    with green.ticking():
        table.copy_expert("copy (select pg_sleep(0.2)) to stdout", io.StringIO())


def test_file_waits(green, connect, table):
    """A file is read and written in the calling greenlet, and may wait cooperatively."""
    other = connect().cursor()
    rows = []

    def write(row):
        other.execute("select %s, pg_sleep(0.01)", [row])
        rows.append(other.fetchone()[0])

    def read(size):
        other.execute("select pg_sleep(0.05)")
        green.sleep(0.01)
        return rows.pop() if rows else ""

    with green.ticking():
        table.copy_expert(
            "copy (select n, repeat('x', 2000) from generate_series(1, 20) n) to stdout",
            Writer(lambda data: write(data.decode())),
        )
    assert [int(row.split("\t")[0]) for row in rows] == list(range(1, 21))
    source = Writer(None)
    source.read = read
    with green.ticking():
        table.copy_from(source, "copied")
    assert table.rowcount == 20


def test_server_hangs_up_while_the_file_waits(green, connect, table):
    """If the session ends while the file waits, the COPY raises the usual error."""
    other = connect()
    other.autocommit = True

    def read(size):
        pid = table.connection.info.backend_pid
        other.cursor().execute("select pg_terminate_backend(%s, 10000)", [pid])
        green.sleep(0.01)
        return b"1\tone\n" * 1000

    source = Writer(None)
    source.read = read
    with pytest.raises(psycopg2.OperationalError):
        table.copy_from(source, "copied")
    assert table.connection.closed


@pytest.mark.parametrize("seconds", [0, 0.005])
def test_notices_during_copy(green, table, monkeypatch, seconds):
    """Many notices from the server while rows are sent do not stop the COPY.

    Nor do they if other greenlets run after each piece.
    """
    monkeypatch.setattr(copying, "SLICE", seconds)
    table.execute("""
        create function pg_temp.tell() returns trigger language plpgsql as $$
        begin raise notice '%', repeat('x', 1000); return new; end $$;
        create trigger tell before insert on copied
        for each row execute function pg_temp.tell()
    """)
    with green.ticking(1):
        table.copy_from(io.StringIO(text(20_000)), "copied")
    assert table.rowcount == 20_000


def interrupted(green, how, begun, work):
    """Return what ended *work*, which ends by itself unless it is to be killed."""
    ended = []

    def run():
        try:
            work()
        except BaseException as ex:
            ended.append(ex)
            raise

    task = green.spawn(run)
    while not begun and not ended:
        green.sleep(0.001)
    if how == "kill":
        green.kill(task)
    while not ended:
        green.sleep(0.01)
    return ended[0]


@pytest.mark.parametrize("way", ["in", "out"])
@pytest.mark.parametrize("how", ["timeout", "kill"])
def test_interrupted(green, connect, way, how):
    """A timeout or kill ends the COPY on the server, and closes the connection."""
    conn, other = connect(), connect()
    other.autocommit = True
    pid = conn.info.backend_pid
    begun = []

    def wait(*_):
        begun.append(True)
        with green.Timeout(0.1 if how == "timeout" else 120):
            green.sleep(60)

    file = Writer(wait)
    file.read = wait
    sql = "copy (select 1) to stdout" if way == "out" else "copy copied from stdin"
    cursor = conn.cursor()
    cursor.execute("create temporary table copied (n int, t text)")
    ended = interrupted(green, how, begun, lambda: cursor.copy_expert(sql, file))
    assert not isinstance(ended, psycopg2.Error)
    assert conn.closed
    query = "select count(*) from pg_stat_activity where pid = %s"
    for _ in range(1000):
        with other.cursor() as look:
            look.execute(query, [pid])
            if look.fetchone() == (0,):
                return
        green.sleep(0.01)
    pytest.fail("the session is still there")


def test_write_fails_on_an_endless_copy(green, table):
    """If write() fails during an endless COPY, the rest is cancelled, not read."""
    with green.ticking(), pytest.raises(ZeroDivisionError):
        table.copy_expert(
            "copy (select generate_series(1, 1000000000000)) to stdout",
            BadFile(),
        )
    table.execute("rollback; select 1")
    assert table.fetchone() == (1,)


def test_timeout_of_the_send_buffer(green, table, monkeypatch):
    """A wait for the send buffer that times out is not an error of the file.

    The callback has this timeout if it was installed as a `functools.partial`.
    """
    send = copying._Unsent.send

    def time_out(unsent):
        monkeypatch.setattr(copying._Unsent, "send", send)
        raise psycogreen.WaitTimeout

    monkeypatch.setattr(copying._Unsent, "send", time_out)
    with pytest.raises(psycogreen.WaitTimeout):
        table.copy_from(io.StringIO(text(50_000)), "copied")
    assert table.connection.closed


@pytest.mark.parametrize("sql", ["copy copied to stdout", "copy copied from stdin"])
def test_failed_copy_keeps_nothing(green, connect, sql):
    """The connection and the file of a failed COPY live no longer than when it blocks.

    An abandoned connection would keep its locks until the garbage collector runs.
    """
    file = BadFile()

    def fail(method, *arguments):
        conn = psycopg2.connect(frameworks.DSN)
        cursor = conn.cursor()
        cursor.execute("create temporary table copied as select 5 as n")
        with contextlib.suppress(psycopg2.Error, ZeroDivisionError):
            getattr(cursor, method)(sql, *arguments)
        return weakref.ref(conn)

    gc.disable()
    try:
        alive = weakref.ref(file)
        of_file = fail("copy_expert", file)
        del file
        assert of_file() is None
        assert alive() is None
        assert fail("execute")() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("following", "rows", "text"),
    [("select 2", [(2,)], "1\n"), ("copy (select 2) to stdout", None, "1\n2\n")],
)
def test_statements_after_copy(conn, following, rows, text):
    """After a COPY in the same string, rows are kept, and a COPY is carried out."""
    file = io.StringIO()
    cursor = conn.cursor()
    cursor.copy_expert(f"copy (select 1) to stdout; {following}", file)
    assert file.getvalue() == text
    assert (cursor.fetchall() if cursor.description else None) == rows
    cursor.execute("select 42")
    assert cursor.fetchone() == (42,)


def test_subclasses_and_existing_objects(green, connect):
    """Cursors of all classes can COPY, also those that existed before the patch."""
    psycogreen.unpatch_psycopg()
    conn = connect()
    before = conn.cursor(cursor_factory=extras.DictCursor)
    psycogreen.patch_psycopg()
    named = conn.cursor("named")
    for cursor in (before, named):
        out = io.StringIO()
        cursor.copy_expert("copy (select 5) to stdout", out)
        assert out.getvalue() == "5\n"
        assert cursor.rowcount == 1
        assert cursor.query == b"copy (select 5) to stdout"
    with pytest.raises(psycopg2.DataError) as failed:
        named.copy_expert("copy (select 1 / 0) to stdout", out)
    assert failed.value.cursor is named


def test_steps_aside(green, connect, table):
    """Inside blocking(), and after unpatch_psycopg(), psycopg2's own COPY is used."""
    # More than one may be replaced: the first one was psycopg2's own.
    original = next(
        before for _, name, before in replacing._replaced if name == "copy_expert"
    )
    with psycogreen.blocking(), green.ticking(0) as ticker:
        table.copy_expert("copy (select pg_sleep(0.1)) to stdout", io.StringIO())
        assert ticker.ticks == 0
    psycogreen.unpatch_psycopg()
    assert vars(extensions.cursor)["copy_expert"] is original
    with green.ticking(0) as ticker:
        table.copy_expert("copy (select pg_sleep(0.1)) to stdout", io.StringIO())
        assert ticker.ticks == 0


def test_prepared_transaction(green, table):
    """COPY is refused while a two-phase transaction is prepared."""
    status = members.Member(extensions.connection, "status")
    status.set(table.connection, extensions.STATUS_PREPARED)
    with pytest.raises(psycopg2.ProgrammingError, match="two-phase"):
        table.copy_to(io.StringIO(), "copied")


def test_async_connection(green, dsn):
    """An asynchronous connection refuses COPY, as without psycogreen."""
    conn = psycopg2.connect(dsn, async_=True)
    extras.wait_select(conn)
    with pytest.raises(psycopg2.ProgrammingError, match="copy_to"):
        conn.cursor().copy_to(io.StringIO(), "copied")
    conn.close()


@pytest.mark.parametrize("end", ["rollback", "commit", "reset"])
@pytest.mark.parametrize("sql", ["copy copied to stdout", "copy copied from stdin"])
def test_refused_by_execute(green, table, sql, end):
    """The connection is usable after execute() has refused a COPY."""
    table.execute("insert into copied select n from generate_series(1, 50000) n")
    with pytest.raises(psycopg2.ProgrammingError, match="can't execute COPY"):
        table.execute(sql)
    try:
        getattr(table.connection, end)()
    except psycopg2.Error:
        table.connection.rollback()
    table.execute("select 5")
    assert table.fetchone() == (5,)


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("sql", ["copy copied to stdout", "copy copied from stdin"])
def test_next_after_refused(green, connect, sql, autocommit):
    """After execute() has refused a COPY, the next statement is as when psycopg2 blocks."""

    def refuse():
        conn = connect()
        conn.autocommit = autocommit
        cursor = conn.cursor()
        cursor.execute("create temporary table copied (n int)")
        cursor.execute("insert into copied select n from generate_series(1, 50000) n")

        def error(method, *arguments):
            try:
                method(*arguments)
            except psycopg2.Error as ex:
                return type(ex)

        return [
            error(cursor.execute, sql),
            error(cursor.executemany, sql, [()]),
            error(cursor.execute, "select 5"),
            error(cursor.execute, "select 5"),
        ]

    with psycogreen.blocking():
        blocking = refuse()
    assert blocking[0] is psycopg2.ProgrammingError
    assert refuse() == blocking


@pytest.mark.parametrize("how", ["timeout", "kill"])
def test_interrupted_after_refused(green, connect, monkeypatch, how):
    """An interruption while a refused COPY is ended closes the connection."""
    monkeypatch.setattr(copying, "DRAIN", 60)
    conn = connect()
    sql = "copy (select generate_series(1, 1000000000000)) to stdout"
    refused = []
    end_refused_copy = failures.end_refused_copy

    def end(*arguments):
        refused.append(True)
        with green.Timeout(0.1 if how == "timeout" else 120):
            end_refused_copy(*arguments)

    monkeypatch.setattr(failures, "end_refused_copy", end)
    ended = interrupted(green, how, refused, lambda: conn.cursor().execute(sql))
    assert not isinstance(ended, psycopg2.Error)
    assert conn.closed


@pytest.mark.parametrize("end", ["rollback", "commit", "reset"])
@pytest.mark.parametrize("sql", ["copy copied to stdout", "copy copied from stdin"])
def test_refused_in_blocking(table, sql, end):
    """A COPY that was refused while psycopg2 blocked is not left under way either."""
    table.connection.commit()
    with (
        psycogreen.blocking(),
        pytest.raises(psycopg2.ProgrammingError, match="can't execute COPY"),
    ):
        table.execute(sql)
    getattr(table.connection, end)()
    table.execute("select 5")
    assert table.fetchone() == (5,)
