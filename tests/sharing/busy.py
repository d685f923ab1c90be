"""Run each operation on a connection during another greenlet's or thread's query.

Usage: busy.py threads|BACKEND

Each operation has its own connection, and all run at the same time. Print the result of
each as JSON: it waited for the query's end, it was done during the query, or it was
refused.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from contract.run import patch

HOW = sys.argv[1]
if HOW != "threads":
    patch(HOW)

import os
import threading

import psycopg2
from psycopg2.extensions import connection
from psycopg2.extras import (
    REPLICATION_PHYSICAL,
    LogicalReplicationConnection,
    execute_batch,
    execute_values,
)
from psycopg2.pool import ThreadedConnectionPool

import psycogreen

DSN = os.environ["DSN"]
LOCK = 1304
WAITS, AT_ONCE, REFUSED = "waits its turn", "at once", "refused"


@dataclass(frozen=True)
class Operation:
    """Something that uses a connection."""

    name: str
    run: Callable[[Any], object]
    """Called with what *prepare* has returned."""
    expected: str = WAITS
    prepare: Callable[[connection], object] = lambda conn: conn
    """Called with a connection before the query begins."""
    autocommit: bool = False
    replication: bool = False
    """Whether the connection is one of replication."""


def enter(conn: connection) -> None:
    """Enter and leave a block that commits."""
    with conn:
        pass


def named(conn: connection) -> Any:
    """Return a named cursor that has rows left."""
    cursor = conn.cursor("named", scrollable=True)
    cursor.execute("select generate_series(1, 10)")
    cursor.fetchone()
    return cursor


def fetched(conn: connection) -> Any:
    """Return a cursor whose rows are here already."""
    cursor = conn.cursor()
    cursor.execute("select generate_series(1, 10)")
    return cursor


def pool_of(conn: connection) -> ThreadedConnectionPool:
    """Return a pool that has lent that connection."""
    pool = ThreadedConnectionPool(0, 1, DSN)
    pool._used[0] = conn
    return pool


def replication(conn: connection) -> tuple[Any, str]:
    """Return a cursor of replication, and the position where it can start."""
    cursor = conn.cursor()
    cursor.execute("IDENTIFY_SYSTEM")
    [_, _, position, _] = cursor.fetchone()
    return cursor, position


def start_replication(prepared: tuple[Any, str]) -> None:
    """Start replication."""
    cursor, position = prepared
    cursor.start_replication(slot_type=REPLICATION_PHYSICAL, start_lsn=position)


def attribute(name: str, value: object) -> Callable[[connection], None]:
    """Return what sets that attribute of a connection."""
    return lambda conn: setattr(conn, name, value)


OPERATIONS = [
    Operation("cursor.execute()", lambda conn: conn.cursor().execute("select 1")),
    Operation(
        "cursor.executemany()",
        lambda conn: conn.cursor().executemany("select %s", [(1,), (2,)]),
    ),
    Operation("cursor.callproc()", lambda conn: conn.cursor().callproc("version")),
    Operation(
        "extras.execute_batch()",
        lambda conn: execute_batch(conn.cursor(), "select %s", [(1,), (2,)]),
    ),
    Operation(
        "extras.execute_values()",
        lambda conn: execute_values(
            conn.cursor(), "select * from (values %s) v", [(1,), (2,)]
        ),
    ),
    Operation("commit()", lambda conn: conn.commit()),
    Operation("rollback()", lambda conn: conn.rollback()),
    Operation("with connection", enter),
    Operation("close()", lambda conn: conn.close()),
    Operation("reset()", lambda conn: conn.reset()),
    Operation("pool.closeall()", lambda pool: pool.closeall(), prepare=pool_of),
    Operation("set_client_encoding()", lambda conn: conn.set_client_encoding("LATIN1")),
    Operation("set_isolation_level()", lambda conn: conn.set_isolation_level(3)),
    Operation(
        "set_session(), in autocommit",
        lambda conn: conn.set_session(readonly=True),
        autocommit=True,
    ),
    Operation(
        "set_session(), in a transaction",
        lambda conn: conn.set_session(readonly=True),
        REFUSED,
    ),
    *(
        Operation(
            f"{name} = {value!r}, in autocommit",
            attribute(name, value),
            autocommit=True,
        )
        for name, value in [
            ("isolation_level", "SERIALIZABLE"),
            ("readonly", True),
            ("deferrable", True),
            ("autocommit", False),
        ]
    ),
    Operation("tpc_recover()", lambda conn: conn.tpc_recover()),
    Operation(
        "named cursor: execute()", lambda conn: conn.cursor("a").execute("select 1")
    ),
    *(
        Operation(f"named cursor: {name}()", run, prepare=named)
        for name, run in [
            ("fetchone", lambda cursor: cursor.fetchone()),
            ("fetchmany", lambda cursor: cursor.fetchmany(2)),
            ("fetchall", lambda cursor: cursor.fetchall()),
            ("__next__", lambda cursor: next(cursor)),
            ("scroll", lambda cursor: cursor.scroll(2)),
            ("close", lambda cursor: cursor.close()),
        ]
    ),
    Operation("fetchone(), rows at hand", lambda c: c.fetchone(), AT_ONCE, fetched),
    Operation("fetchall(), rows at hand", lambda c: c.fetchall(), AT_ONCE, fetched),
    Operation("cursor.close()", lambda cursor: cursor.close(), AT_ONCE, fetched),
    Operation("cursor()", lambda conn: conn.cursor(), AT_ONCE),
    Operation(
        "cursor.mogrify()", lambda conn: conn.cursor().mogrify("%s", (1,)), AT_ONCE
    ),
    Operation(
        "get_transaction_status()", lambda conn: conn.get_transaction_status(), AT_ONCE
    ),
    Operation(
        "get_parameter_status()",
        lambda conn: conn.get_parameter_status("TimeZone"),
        AT_ONCE,
    ),
    Operation("cancel()", lambda conn: conn.cancel(), AT_ONCE),
    Operation(
        "replication cursor: start_replication()",
        start_replication,
        prepare=replication,
        replication=True,
    ),
    Operation(
        "replication cursor: consume_stream(), not started",
        lambda prepared: prepared[0].consume_stream(print),
        REFUSED,
        prepare=replication,
        replication=True,
    ),
    Operation(
        "replication cursor: send_feedback()",
        lambda prepared: prepared[0].send_feedback(flush_lsn=1),
        AT_ONCE,
        prepare=replication,
        replication=True,
    ),
]


class Trial:
    """One operation on its connection, during a query."""

    def __init__(self, operation: Operation) -> None:
        """Connect, and prepare."""
        self.operation = operation
        if operation.replication:  # which is always in autocommit
            factory = LogicalReplicationConnection
            self.conn = psycopg2.connect(DSN, connection_factory=factory)
        else:
            self.conn = psycopg2.connect(DSN)
            self.conn.autocommit = operation.autocommit
        self.argument = operation.prepare(self.conn)
        self.done = False
        self.answer: object = None
        self.error: psycopg2.Error | None = None

    def query(self) -> None:
        """Make a query that lasts until the lock is free."""
        cursor = self.conn.cursor()
        try:
            cursor.execute("select from pg_advisory_xact_lock_shared(%s)", (LOCK,))
            # Not the row: the next one may close the connection meanwhile.
            self.answer = cursor.rowcount
        except psycopg2.Error as ex:
            self.answer = type(ex).__name__

    def run(self) -> None:
        """Do the operation."""
        try:
            self.operation.run(self.argument)
        except psycopg2.Error as ex:
            self.error = ex
        self.done = True

    def is_expected_at_once(self) -> bool:
        """Return whether the operation does not wait, in threads."""
        return self.operation.expected != WAITS


def until(condition: Callable[[], bool]) -> None:
    """Wait for the condition."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def waiting(cursor: Any) -> int:
    """Return how many queries wait for the lock."""
    cursor.execute(
        "select count(*) from pg_locks where locktype = 'advisory' and not granted"
    )
    [count] = cursor.fetchone()
    return int(count)


def outcomes() -> dict[str, str]:
    """Make all operations, each during a query; return what became of them."""
    trials = [Trial(operation) for operation in OPERATIONS]
    holder = psycopg2.connect(DSN)
    holder.autocommit = True
    cursor = holder.cursor()
    cursor.execute("select pg_advisory_lock(%s)", (LOCK,))
    queries = [threading.Thread(target=trial.query) for trial in trials]
    for each in queries:
        each.start()
    until(lambda: waiting(cursor) == len(trials))
    runs = [threading.Thread(target=trial.run) for trial in trials]
    for each in runs:
        each.start()
    if HOW == "threads":
        until(lambda: all(t.done for t in trials if t.is_expected_at_once()))
    else:
        from psycogreen._interface import turns

        until(lambda: sum(t.done for t in trials) + turns.queued() == len(trials))
    early = [trial for trial in trials if trial.done]
    cursor.execute("select pg_advisory_unlock(%s)", (LOCK,))
    for each in [*queries, *runs]:
        each.join(60)
        assert not each.is_alive()
    for trial in trials:
        cancelled = trial.operation.name == "cancel()"
        assert trial.answer == ("QueryCanceled" if cancelled else 1), trial.operation
    return {
        trial.operation.name: (
            f"{REFUSED}: {trial.error}"
            if trial.error
            else AT_ONCE
            if trial in early
            else WAITS
        )
        for trial in trials
    }


if __name__ == "__main__":
    if HOW != "threads":
        psycogreen.patch_psycopg()
    print(json.dumps(outcomes()))
