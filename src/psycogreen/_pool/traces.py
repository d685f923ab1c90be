"""Decide whether a statement changes its session for the next user of the connection.

The server does not report such changes, and a reset on each return costs a query. So the
pool looks at the statements: those of a list leave no traces, any other may. A call of a
function may change the session too; only PostgreSQL's own functions are known here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

from psycopg2.extensions import connection, cursor
from psycopg2.extensions import cursor as Cursor
from psycopg2.sql import Composable

# Statements whose effect ends with them or their transaction. Comments and brackets may
# come first.
_HARMLESS = re.compile(
    r"(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*"
    r"(?:select|insert|update|delete|merge|with|values|table|explain|show|copy|fetch|move"
    r"|close|savepoint|release|rollback|commit|lock|notify|set\s+(?:local|constraints|transaction)"
    r"|declare)\b",
    re.IGNORECASE | re.DOTALL,
)
# Parts of such statements whose effect stays; and the beginning of a second statement.
_TRACES = re.compile(
    r"set_config|advisory_lock|setseed|\bwith\s+hold\b|;\s*\S"
    r"|\binto\s+(?:local\s+|global\s+)?temp",
    re.IGNORECASE,
)
# Longer ones, of a bulk insert, would fill the cache.
_LONGEST_CACHED = 4096


def leaves_traces(statement: str) -> bool:
    """Return whether *statement* may change its session beyond the transaction."""
    if len(statement) > _LONGEST_CACHED:
        return _look(statement)
    return _look_cached(statement)


def _look(statement: str) -> bool:
    return not _HARMLESS.match(statement) or bool(_TRACES.search(statement))


_look_cached = lru_cache(1024)(_look)


class _WatchedCursor(cursor):
    """A cursor that records on its connection whether its statements may leave traces."""

    connection: WatchedConnection

    def execute(self, query: Any, vars: Any = None) -> Any:  # noqa: ANN401
        self.connection.note(query, self)
        return super().execute(query, vars)

    def executemany(self, query: Any, vars_list: Any) -> Any:  # noqa: ANN401
        self.connection.note(query, self)
        return super().executemany(query, vars_list)

    def callproc(self, procname: Any, parameters: Any = None) -> Any:  # noqa: ANN401
        self.connection.note(f"select {procname}", self)
        return super().callproc(procname, parameters)

    def close(self) -> None:
        held = self.withhold and not self.closed
        super().close()
        if held:
            self.connection.held -= 1


class WatchedConnection(connection):
    """A connection that knows whether its session may differ from a new one."""

    traces = False
    """Whether a statement may have left traces in the session."""

    held = 0
    """How many cursors ``with hold`` have been made and not closed."""

    def cursor(
        self,
        name: str | bytes | None = None,
        cursor_factory: Callable[..., Any] | None = None,
        withhold: bool = False,
        scrollable: bool | None = None,
    ) -> Any:  # noqa: ANN401
        """Return a cursor as psycopg2 does, of a class that records its statements."""
        given: Any = self.cursor_factory if cursor_factory is None else cursor_factory
        given = given or Cursor
        if isinstance(given, type):
            given = _watched_cursor(given)
        made = super().cursor(name, given, withhold, scrollable)
        if name is not None and withhold:
            self.held += 1
        return self.check(made)

    def check(self, made: Cursor) -> Any:  # noqa: ANN401
        """Return *made*; if it is not a watched cursor, assume that it leaves traces."""
        if not isinstance(made, _WatchedCursor):
            self.traces = True
        return made

    def reset(self) -> None:
        """Reset the session as psycopg2 does: its state then differs from a new one's."""
        self.traces = True
        super().reset()

    def note(self, query: Any, by: Cursor) -> None:  # noqa: ANN401
        """Record whether *query* may leave traces."""
        if not self.traces:
            self.traces = leaves_traces(_text(query, by))


class _Checked:
    """The first base of a connection class that may make its own cursors."""

    def cursor(self: Any, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        return self.check(super().cursor(*arguments, **options))  # type: ignore[misc]


def _text(query: Any, by: Cursor) -> str:  # noqa: ANN401
    if isinstance(query, str):
        return query
    if isinstance(query, Composable):
        return query.as_string(by)
    # A statement that psycopg2 will refuse counts as leaving traces.
    return query.decode("latin-1") if isinstance(query, bytes) else ""


@cache
def watched(factory: Any) -> type[WatchedConnection]:  # noqa: ANN401
    """Return *factory*, a class of connections, with the statements watched."""
    if factory is None or factory is connection:
        return WatchedConnection
    if not isinstance(factory, type):
        msg = f"connection_factory={factory!r}: it must be a class of connections"
        raise TypeError(msg)
    # *factory* comes first: it may choose the class of the cursors.
    return type(factory.__name__, (_Checked, factory, WatchedConnection), {})


@cache
def _watched_cursor(factory: type[cursor]) -> Any:  # noqa: ANN401
    if factory is cursor:
        return _WatchedCursor
    return type(factory.__name__, (_WatchedCursor, factory), {})
