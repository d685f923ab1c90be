"""Measure, with real queries, whether psycopg2 blocks the loop while it waits."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn

from psycogreen._interface.hosts import named_hosts
from psycogreen._interface.readback import is_noted
from psycogreen._wait import native

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from psycogreen._check.tasks import Loop

_CONNECT_TIMEOUT = 10  # seconds for each host, if the application sets no limit
_DEADLINE = 1  # seconds until a silent server times out; libpq takes whole seconds
_PATIENCE = 5.0  # seconds after which connect_timeout counts as ignored


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The measurements; ``None`` for each that was not made."""

    server: str | None = None
    """The user, database, host and port of the connections."""

    wall_time: float | None = None
    """Seconds from the first query to the last answer."""

    longest_stall: float | None = None
    """The longest time, in seconds, that the loop was blocked during the queries."""

    connect_stall: float | None = None
    """The longest time, in seconds, that it was blocked while connecting."""

    resolved_by: str | None = None
    """Which resolver looked up the host names: ``"psycogreen"``, ``"libpq"``, or
    ``"gevent"`` if gevent's resolver blocks the loop. ``None`` if the connection string
    has no host name."""

    connect_timeout_honoured: bool | None = None
    """Whether connecting to a silent server ended after ``connect_timeout``.
    ``None`` if that was not tried, because the loop is blocked anyway."""


def measure(
    loop: Loop, dsn: str, queries: int, seconds: float, say: Callable[[str], object]
) -> Figures:
    """Run *queries* of *seconds* each concurrently, and measure the loop's stalls."""
    opened: list[connection] = []
    try:
        with loop.ticking() as ticker:
            say(f"opening {queries} connections")
            loop.run_all([partial(_connect, dsn, opened)] * queries)
            connect_stall = ticker.stall()
            ticker.reset()
            say(f"running {queries} concurrent queries of {seconds:g} s")
            begin = time.monotonic()
            loop.run_all([partial(_query, conn, seconds) for conn in opened])
            wall_time = time.monotonic() - begin
            stall = ticker.stall()
        server = _server(opened[0])
        resolved_by = _resolved_by(loop, opened[0])
    finally:
        for conn in opened:
            conn.close()
    honoured = None
    if not stands_still(stall, seconds):
        say("testing connect_timeout with a server that does not answer")
        honoured = _times_out(loop)
    return Figures(
        server=server,
        wall_time=wall_time,
        longest_stall=stall,
        connect_stall=connect_stall,
        resolved_by=resolved_by,
        connect_timeout_honoured=honoured,
    )


def stands_still(stall: float, seconds: float) -> bool:
    """Return whether *stall* is long enough to come from queries of *seconds*.

    A query that blocks stops the loop for its whole duration. A shorter stall comes
    from the machine's load.
    """
    return stall > 0.9 * seconds


def _connect(dsn: str, opened: list[connection]) -> None:
    limited = "connect_timeout" in parse_dsn(dsn) or "PGCONNECT_TIMEOUT" in os.environ
    options: dict[str, Any] = {"fallback_application_name": "psycogreen check"}
    if not limited:
        options["connect_timeout"] = _CONNECT_TIMEOUT
    opened.append(psycopg2.connect(dsn, **options))


def _query(conn: connection, seconds: float) -> None:
    conn.cursor().execute("select pg_sleep(%s)", (seconds,))


def _server(conn: connection) -> str:
    info = conn.info
    return str(
        make_dsn(user=info.user, dbname=info.dbname, host=info.host, port=info.port)
    )


def _resolved_by(loop: Loop, conn: connection) -> str | None:
    """Return which resolver looked up the host names: see `Figures`."""
    if not named_hosts(conn.info.dsn_parameters):
        return None
    if not is_noted(conn):
        return "libpq"
    return loop.name if loop.resolver_blocks() else "psycogreen"


def _times_out(loop: Loop) -> bool:
    """Return whether connecting to a silent server fails after ``connect_timeout``."""
    errors: list[str] = []
    with closing(native.original("socket", "socket")()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with loop.timeout(_PATIENCE):
            _connect_in_vain(silent.getsockname()[1], errors)
    return any("timeout expired" in error for error in errors)


def _connect_in_vain(port: int, errors: list[str]) -> None:
    try:
        psycopg2.connect(
            host="127.0.0.1",
            hostaddr="127.0.0.1",
            port=port,
            user="psycogreen",
            dbname="psycogreen",
            sslmode="disable",
            connect_timeout=_DEADLINE,
        )
    except psycopg2.OperationalError as ex:
        errors.append(str(ex))
