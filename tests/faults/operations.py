"""The operations that meet faults: what an application does with psycopg2."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from psycopg2.extensions import connection

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
SHORT = CONNECT, CONNECT_SCRAM, CONNECT_TLS, QUERY, QUERY_TLS, COMMIT
# With a name to be resolved: that waits as well.
INTERRUPTIBLE = (
    Operation("connect", None, options={**_LIMIT, "host": "localhost"}),
    QUERY,
    COMMIT,
    ROLLBACK,
    CLOSE,
)
