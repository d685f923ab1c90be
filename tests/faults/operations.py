"""The operations that meet faults: what an application does with psycopg2."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from psycopg2.extensions import connection
from psycopg2.extras import LogicalReplicationConnection, ReplicationMessage

# How long they last is up to their connection, see Bench.connect().
_LASTING = "pg_sleep(current_setting('fault.seconds')::float)"

_TALKATIVE = f"""
    do $$ begin
        for n in 1..3 loop raise notice '%', n; perform pg_sleep(0.1); end loop;
        perform {_LASTING};
    end $$;
    select n, repeat('x', 100) from generate_series(1, 3) n
"""


@dataclass(frozen=True)
class Operation:
    """An operation and what comes before it."""

    name: str
    run: Callable[[connection], object] | None
    """Does it; ``None``: it is to connect."""
    prepare: Callable[[connection], object] = lambda conn: None
    """Does what comes before it."""
    options: dict[str, object] = field(default_factory=dict)
    """How to connect."""
    streams: bool = False
    """Whether the connection can do nothing else after the operation has begun."""


def execute(query: str, *parameters: object) -> Callable[[connection], object]:
    """Return what executes *query*."""
    return lambda conn: conn.cursor().execute(query, parameters or None)


# Without a root to trust, libpq 17 crashes when the handshake is cut off: it compares
# the name of the root's file, a null pointer then, with "system".
_TLS = {
    "sslmode": "verify-full",
    "sslrootcert": os.environ.get("PSYCOGREEN_TEST_ROOT"),
    "host": "localhost",
}
_LIMIT = {"connect_timeout": 1}

CONNECT = Operation("connect, plain", None, options=_LIMIT)
CONNECT_SCRAM = Operation(
    "connect, scram",
    None,
    options={**_LIMIT, "user": "with_password", "password": "right"},
)
CONNECT_TLS = Operation("connect, TLS", None, options={**_LIMIT, **_TLS})
QUERY = Operation("query", execute(_TALKATIVE))
QUERY_TLS = Operation("query, TLS", execute(_TALKATIVE), options=_TLS)
# A deferred trigger makes it last, see the lab's tables.
COMMIT = Operation(
    "commit", connection.commit, execute("insert into deferred values (1)")
)
ROLLBACK = Operation("rollback", connection.rollback, execute("select 1"))
CLOSE = Operation("close", connection.close, execute("select 1"))
LARGE_PARAMETER = Operation(
    "20 MB parameter", execute("select length(%s)", "x" * 20_000_000)
)
LARGE_RESULT = Operation(
    "50 MB result",
    execute("select n, repeat('x', 1000) from generate_series(1, 50000) n"),
)


def copy_out(conn: connection) -> None:
    """Copy four rows to a file; the last one takes long.

    A cancel request that comes before the server has read the statement has no effect.
    Each row fills the server's send buffer, so the server then notices that the client has
    gone.
    """
    file = io.StringIO()
    conn.cursor().copy_expert(
        "copy (select n, repeat('x', 10000), case n "
        f"when 4 then {_LASTING} else pg_sleep(0.1) end"
        " from generate_series(1, 4) n) to stdout",
        file,
    )
    assert [line[0] for line in file.getvalue().splitlines()] == ["1", "2", "3", "4"]


def copy_in(conn: connection) -> None:
    """Copy three rows from a file, one per message; a trigger makes them slow."""
    cursor = conn.cursor()
    cursor.copy_expert("copy copied from stdin", io.BytesIO(b"1\n2\n3\n"), size=2)
    assert cursor.rowcount == 3


def use_large_object(conn: connection) -> None:
    """Write a large object and read it."""
    thing = conn.lobject(mode="wb")
    thing.write(b"some data")
    thing.seek(5)
    assert thing.read() == b"data"
    thing.close()


def change_a_slot(conn: connection) -> None:
    """Make a replication slot and a transaction that can be read from it."""
    cursor = conn.cursor()
    cursor.slot = f"slot_{uuid.uuid4().hex}"
    conn.slot_cursor = cursor
    cursor.execute(
        f"CREATE_REPLICATION_SLOT {cursor.slot} TEMPORARY LOGICAL test_decoding"
    )
    cursor.execute("insert into replicated values (1), (2), (3)")


class _Enough(Exception):
    """The consumer has seen the whole transaction."""


def replicate(conn: connection) -> None:
    """Read the transaction."""
    payloads = []

    def consume(message: ReplicationMessage) -> None:
        payloads.append(message.payload)
        if len(payloads) == 5:
            raise _Enough

    conn.slot_cursor.start_replication(slot_name=conn.slot_cursor.slot, decode=True)
    with suppress(_Enough):
        conn.slot_cursor.consume_stream(consume)
    assert [payload.split()[0] for payload in payloads] == [
        *("BEGIN", "table", "table", "table", "COMMIT")
    ]


COPY_OUT = Operation("COPY out", copy_out)
COPY_IN = Operation("COPY in", copy_in)
LARGE_OBJECT = Operation("large object", use_large_object)
REPLICATION = Operation(
    "replication",
    replicate,
    change_a_slot,
    {"connection_factory": LogicalReplicationConnection},
    streams=True,
)
CARRIED = COPY_OUT, COPY_IN, LARGE_OBJECT, REPLICATION
"""The operations that psycopg2 itself refuses when it has a wait callback."""

SHORT = CONNECT, CONNECT_SCRAM, CONNECT_TLS, QUERY, QUERY_TLS, COMMIT, *CARRIED
# With a name to be resolved: that waits as well.
INTERRUPTIBLE = (
    Operation("connect", None, options={**_LIMIT, "host": "localhost"}),
    QUERY,
    COMMIT,
    ROLLBACK,
    CLOSE,
    *CARRIED,
)
