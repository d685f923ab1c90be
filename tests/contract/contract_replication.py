"""Replication works as in blocking psycopg2, but cooperatively."""

import os
import signal
import time
import uuid
from contextlib import suppress
from functools import partial

import psycopg2
import pytest
from psycopg2 import extras

import psycogreen
from psycogreen._interface import blocking


class Stop(Exception):
    """The exception by which a consumer ends the stream."""


@pytest.fixture
def table(connect):
    """A cursor, and a table to change."""
    conn = connect()
    conn.autocommit = True
    cursor = conn.cursor()
    cursor.execute("create table if not exists replicated (t text)")
    return cursor


@pytest.fixture
def replicate(connect):
    """Open a replication connection, with a slot that is dropped with it."""

    def replicate(cursor_class=extras.ReplicationCursor):
        conn = connect(connection_factory=extras.LogicalReplicationConnection)
        cursor = conn.cursor(cursor_factory=cursor_class)
        slot = f"slot_{uuid.uuid4().hex}"
        try:
            cursor.execute(
                f"CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL test_decoding"
            )
        except psycopg2.errors.UndefinedFile:
            pytest.skip("there is no test_decoding: install PostgreSQL's contrib")
        cursor.slot = slot
        return cursor

    return replicate


def inserted(message):
    """Return the text that a message says was inserted, if it does."""
    _, found, text = message.payload.partition("INSERT: t[text]:'")
    return text.rstrip("'") if found else None


def test_consume_stream(green, table, replicate):
    """consume_stream() lets other greenlets run, and raises the consumer's exception."""
    cursor = replicate()
    cursor.start_replication(slot_name=cursor.slot, decode=True, status_interval=1)
    seen = []

    def consume(message):
        assert message.cursor is cursor
        assert message.data_start <= message.wal_end
        if text := inserted(message):
            seen.append(text)
            message.cursor.send_feedback(flush_lsn=message.data_start)
            green.sleep(0)
        if len(seen) == 1003:
            raise Stop

    def insert():
        for n in range(3):
            table.execute("insert into replicated values (%s)", [str(n)])
            green.sleep(0.05)
        table.execute("insert into replicated select n from generate_series(1, 1000) n")

    task = green.spawn(insert)
    with green.ticking(), pytest.raises(Stop):
        cursor.consume_stream(consume, keepalive_interval=1)
    green.wait(task)
    assert seen == ["0", "1", "2", *map(str, range(1, 1001))]


def test_read_message(green, table, replicate):
    """read_message() returns a message without waiting."""
    cursor = replicate()
    cursor.start_replication(slot_name=cursor.slot, decode=True)
    table.execute("insert into replicated values ('one')")
    texts = []
    while "one" not in texts:
        message = cursor.read_message()
        if message is None:
            green.sleep(0.01)
        else:
            texts.append(inserted(message))
    assert cursor.io_timestamp > cursor.feedback_timestamp
    assert cursor.wal_end


def test_feedback_in_time(green, replicate, table):
    """The server gets feedback at each status_interval, also without messages."""
    cursor = replicate()
    cursor.start_replication(slot_name=cursor.slot, status_interval=1)
    task = green.spawn(cursor.consume_stream, lambda message: None)
    replied = "select reply_time from pg_stat_replication where pid = %s"
    times = set()
    while len(times) < 3:
        table.execute(replied, [cursor.connection.info.backend_pid])
        times.update(table.fetchall())
        green.sleep(0.05)
    green.kill(task)


@pytest.fixture
def full(green, replicate):
    """A cursor whose server is stopped, and a greenlet that waits to send it feedback.

    They come with a function that lets the server go on.
    """
    cursor = replicate()
    conn = cursor.connection
    cursor.start_replication(slot_name=cursor.slot, status_interval=1)
    pid = conn.info.backend_pid
    stopped = [pid]
    sent = []

    def resume():
        with suppress(ProcessLookupError):  # its session has ended
            os.kill(pid, signal.SIGCONT)
        stopped.clear()

    def fill():
        while stopped:
            cursor.send_feedback(force=True)
            sent.append(None)

    os.kill(pid, signal.SIGSTOP)
    try:
        task = green.spawn(fill)
        before = -1
        while len(sent) > before:  # the kernel may have passed data on meanwhile
            before = len(sent)
            green.sleep(0.3)
        yield cursor, task, resume
    finally:
        resume()


def test_feedback_without_room(green, full):
    """send_feedback() waits cooperatively for the server to make room."""
    cursor, task, resume = full
    with green.ticking():
        green.sleep(0.1)
    cursor.send_feedback(flush_lsn=1)  # this sends nothing
    resume()
    green.wait(task)


def waits_for_room(green, cursor, call):
    """Fill the socket until feedback is due; return whether *call* waits then."""

    def fill():
        while True:
            cursor.send_feedback(force=True)

    task = green.spawn(fill)
    while time.time() < cursor.feedback_timestamp.timestamp() + 1:
        green.sleep(0.1)
    green.kill(task)
    try:
        with green.Timeout(0.2):
            call()
    except green.Timeout:
        return True
    return False


@pytest.mark.parametrize("name", ["read_message", "consume_stream"])
def test_feedback_due_without_room(green, full, name):
    """The other methods wait for room as well, if feedback is due."""
    cursor, task, resume = full
    green.kill(task)
    arguments = [print] if name == "consume_stream" else []
    call = partial(getattr(cursor, name), *arguments)
    with green.ticking():
        # The kernel sometimes makes room meanwhile: then try again.
        assert any(waits_for_room(green, cursor, call) for _ in range(10))
    resume()
    cursor.send_feedback(force=True)
    assert not cursor.connection.closed


def test_session_ended_without_room(green, full, table):
    """If the session ends during the wait for room, psycopg2's errors say so."""
    cursor, task, resume = full
    table.execute(
        "select pg_terminate_backend(%s)", [cursor.connection.info.backend_pid]
    )
    resume()

    def use():
        green.wait(task)
        while True:
            cursor.read_message()
            green.sleep(0)

    with pytest.raises(psycopg2.Error):
        use()
    with pytest.raises(psycopg2.Error):
        cursor.send_feedback(force=True)


def test_errors(green, replicate):
    """Wrong arguments of the replication methods raise psycopg2's errors."""
    cursor = replicate()
    with pytest.raises(psycopg2.ProgrammingError, match="call start_replication first"):
        cursor.consume_stream(print)
    with pytest.raises(psycopg2.ProgrammingError, match="status_interval must be >= 1"):
        cursor.start_replication(slot_name=cursor.slot, status_interval=0.5)
    with pytest.raises(psycopg2.errors.UndefinedObject):
        cursor.start_replication(slot_name="missing")
    with pytest.raises(TypeError):
        cursor.start_replication_expert()
    cursor = replicate()  # an error of the server has dropped the first one's slot
    cursor.start_replication(slot_name=cursor.slot)
    with pytest.raises(psycopg2.ProgrammingError, match="interval must be >= 1"):
        cursor.consume_stream(print, keepalive_interval=0.5)
    with pytest.raises(psycopg2.ProgrammingError, match="must be int or float"):
        cursor.consume_stream(print, keepalive_interval="x")
    with pytest.raises(TypeError, match="must be callable, not 5"), green.Timeout(10):
        cursor.consume_stream(5)
    cursor.close()
    with pytest.raises(psycopg2.InterfaceError):
        cursor.read_message()


def test_session_ended(replicate, table):
    """A query in a replication session that the server has ended raises psycopg2's error."""
    cursor = replicate()
    pid = cursor.connection.info.backend_pid
    table.execute("select pg_terminate_backend(%s)", (pid,))
    with pytest.raises(psycopg2.OperationalError) as raised:
        cursor.execute("select 1")
    assert raised.value.cursor is cursor


def test_interrupted(green, replicate):
    """A Timeout around consume_stream() ends it."""
    cursor = replicate()
    cursor.start_replication(slot_name=cursor.slot)
    with green.ticking(), pytest.raises(green.Timeout), green.Timeout(0.2):
        cursor.consume_stream(lambda message: None)


def test_steps_aside(green, replicate):
    """Inside blocking(), psycopg2's own replication methods are used."""
    cursor = replicate()
    with psycogreen.blocking():
        cursor.start_replication(slot_name=cursor.slot)
        assert cursor.read_message() is None or cursor.wal_end


def test_read_message_of_a_subclass(green, replicate, table):
    """consume_stream() reads by itself, whatever method a subclass has."""

    class Cursor(extras.ReplicationCursor):
        def read_message(self):
            raise AssertionError

    def consume(message):
        raise extras.StopReplication

    cursor = replicate(Cursor)
    cursor.start_replication(cursor.slot, decode=True)
    table.execute("insert into replicated values (1)")
    with pytest.raises(extras.StopReplication):
        cursor.consume_stream(consume)


def test_connections_stay_prepared(green, replicate, table, monkeypatch):
    """read_message() does not make all connections prepare for another way to wait."""
    changes = []
    monkeypatch.setattr(blocking, "on_change", [lambda: changes.append(True)])
    cursor = replicate()
    cursor.start_replication(cursor.slot, decode=True)
    for _ in range(3):
        cursor.read_message()
    assert changes == []
    with psycogreen.blocking():
        cursor.read_message()
    assert changes == [True, True]
