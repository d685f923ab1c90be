"""Connections shared by greenlets: methods that take a connection's lock take a turn.

With psycopg2's own methods, a second greenlet would block the thread, or get an error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from psycopg2._psycopg import ReplicationCursor
from psycopg2.extensions import connection, cursor

from psycogreen._interface import failures
from psycogreen._interface.replacing import Replacement
from psycogreen._interface.turns import (
    OF_CONNECTION,
    OF_CURSOR,
    OF_NAMED_CURSOR,
    OnError,
    give,
    has,
    take,
    taking_turn,
)

_CONNECTION = (
    "close",
    "commit",
    "reset",
    "rollback",
    "set_client_encoding",
    "set_isolation_level",
    "set_session",
    "tpc_begin",
    "tpc_commit",
    "tpc_prepare",
    "tpc_recover",
    "tpc_rollback",
)

_ATTRIBUTES = ("autocommit", "deferrable", "isolation_level", "readonly")
"""The attributes that take the lock when they are set."""

_CURSOR = ("callproc", "copy_expert", "copy_from", "copy_to", "execute")

_NAMED_CURSOR = ("__next__", "close", "fetchall", "fetchmany", "fetchone", "scroll")
"""The methods that query the server if the cursor is named, and else take no lock."""

Method = Callable[..., Any]

# The base type's descriptors: psycopg2 does not use a subclass's attributes.
_connection_of = vars(cursor)["connection"].__get__
_name_of = vars(cursor)["name"].__get__


def _call_in_turn(
    conn: connection,
    on_error: OnError,
    original: Method,
    self: object,
    /,
    *args: object,
    **kwargs: object,
) -> object:
    had_turn = has(conn)
    try:
        # A connection's own methods send no large statement, and many connections are
        # only closed.
        take(conn, fits=self is not conn)
        try:
            return original(self, *args, **kwargs)
        except BaseException as ex:
            on_error(self, ex)
            raise
    finally:
        if not had_turn:
            give(conn)


def _of_connection(original: Method) -> Method:
    @functools.wraps(original)
    def method(self: connection, /, *args: object, **kwargs: object) -> object:
        on_error = failures.after_connection
        return _call_in_turn(self, on_error, original, self, *args, **kwargs)

    return method


def _attribute(original: Any) -> property:  # noqa: ANN401
    set_in_turn = _of_connection(original.__set__)
    return property(original.__get__, set_in_turn, doc=original.__doc__)


def _of_cursor(original: Method) -> Method:
    @functools.wraps(original)
    def method(self: cursor, /, *args: object, **kwargs: object) -> object:
        conn = _connection_of(self)
        if conn is None:  # the cursor is not initialised: psycopg2 raises the error
            return original(self, *args, **kwargs)
        on_error = failures.after_cursor
        return _call_in_turn(conn, on_error, original, self, *args, **kwargs)

    return method


def _of_named_cursor(original: Method) -> Method:
    in_turn = _of_cursor(original)

    @functools.wraps(original)
    def method(self: cursor, /, *args: object, **kwargs: object) -> object:
        if _name_of(self) is None:
            return original(self, *args, **kwargs)
        return in_turn(self, *args, **kwargs)

    return method


class _Rows:
    """The rows of an ``executemany()``; others may take a turn before each row.

    psycopg2 in threads also releases the lock while the application makes the next row.
    """

    def __init__(self, conn: connection, rows: Any) -> None:  # noqa: ANN401
        self._conn = conn
        self._rows = rows
        self.has_turn = True

    def __iter__(self) -> Iterator[object]:
        return self._in_turn(iter(self._rows))

    def _in_turn(self, rows: Iterator[object]) -> Iterator[object]:
        while True:
            self.has_turn = False
            give(self._conn)
            try:
                row = next(rows)
            except StopIteration:
                return
            take(self._conn)
            self.has_turn = True
            yield row


def _executemany(original: Method) -> Method:
    in_turn = _of_cursor(original)

    @functools.wraps(original)
    def executemany(self: cursor, query: object, vars_list: object) -> Any:  # noqa: ANN401
        conn = _connection_of(self)
        if conn is None or has(conn):
            return in_turn(self, query, vars_list)
        rows = _Rows(conn, vars_list)
        try:
            take(conn)
            try:
                return original(self, query, rows)
            except BaseException as ex:
                # An exception from the application's rows is not an error of a statement.
                if rows.has_turn:
                    failures.after_cursor(self, ex)
                raise
        finally:
            give(conn)

    return executemany


_WHOSE: dict[int, tuple[Callable[[Method], Method], OnError]] = {
    OF_CONNECTION: (_of_connection, failures.after_connection),
    OF_CURSOR: (_of_cursor, failures.after_cursor),
    OF_NAMED_CURSOR: (_of_named_cursor, failures.after_cursor),
}


def _method(cls: type, name: str, whose: int) -> Replacement:
    in_turn, on_error = _WHOSE[whose]

    def make(original: Method) -> Method:
        made: Method = taking_turn(original, whose, on_error, in_turn(original))
        return made

    return Replacement(cls, name, make)


REPLACEMENTS = [
    *(_method(connection, name, OF_CONNECTION) for name in _CONNECTION),
    *(Replacement(connection, name, _attribute) for name in _ATTRIBUTES),
    *(_method(cursor, name, OF_CURSOR) for name in _CURSOR),
    *(_method(cursor, name, OF_NAMED_CURSOR) for name in _NAMED_CURSOR),
    _method(ReplicationCursor, "start_replication_expert", OF_CURSOR),
    Replacement(cursor, "executemany", _executemany),
]
"""The methods that take a turn. Install them after the methods that they wrap."""
