"""Connections shared by greenlets: methods that take a connection's lock take a turn.

With psycopg2's own methods, a second greenlet would block the thread, or get an error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from psycopg2.extensions import connection, cursor

from psycogreen._interface import failures
from psycogreen._interface.replacing import Replacement
from psycogreen._interface.turns import give, take, taking_turn

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

_CURSOR = ("callproc", "copy_expert", "copy_from", "copy_to")

# Methods that query the server if the cursor is named, and otherwise take no lock.
_NAMED_CURSOR = ("fetchmany", "scroll")
_WITHOUT_ARGUMENTS = ("__next__", "close", "fetchall", "fetchone")

Method = Callable[..., Any]

# The base type's descriptors: psycopg2 does not use a subclass's attributes.
_connection_of = vars(cursor)["connection"].__get__
_name_of = vars(cursor)["name"].__get__


def _of_connection(original: Method) -> Method:
    @functools.wraps(original)
    def method(self: connection, /, *args: object, **kwargs: object) -> object:
        taken = take(self)
        try:
            return original(self, *args, **kwargs)
        except BaseException as ex:
            failures.after_connection(self, ex)
            raise
        finally:
            if taken:
                give(self)

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
        taken = take(conn)
        try:
            return original(self, *args, **kwargs)
        except BaseException as ex:
            failures.after_cursor(self, ex)
            raise
        finally:
            if taken:
                give(conn)

    return method


def _execute(original: Method) -> Method:
    # Like _of_cursor(), but with named arguments: packing them costs time in each query.
    @functools.wraps(original)
    def execute(self: cursor, query: Any, vars: Any = None) -> Any:  # noqa: ANN401
        conn = _connection_of(self)
        if conn is None:
            return original(self, query, vars)
        taken = take(conn)
        try:
            return original(self, query, vars)
        except BaseException as ex:
            failures.after_cursor(self, ex)
            raise
        finally:
            if taken:
                give(conn)

    return execute


def _of_named_cursor(original: Method) -> Method:
    in_turn = _of_cursor(original)

    @functools.wraps(original)
    def method(self: cursor, /, *args: object, **kwargs: object) -> object:
        if _name_of(self) is None:
            return original(self, *args, **kwargs)
        return in_turn(self, *args, **kwargs)

    return method


def _without_arguments(original: Method) -> Method:
    # Like _of_named_cursor(), but cheaper: it runs for every row.
    in_turn = _of_cursor(original)

    @functools.wraps(original)
    def method(self: cursor) -> object:
        return (original if _name_of(self) is None else in_turn)(self)

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
    @functools.wraps(original)
    def executemany(self: cursor, query: object, vars_list: object) -> Any:  # noqa: ANN401
        conn = _connection_of(self)
        taken = conn is not None and take(conn)
        rows = _Rows(conn, vars_list) if taken else None
        try:
            return original(self, query, rows or vars_list)
        except BaseException as ex:
            # An exception from the application's rows is not an error of a statement.
            if rows is None or rows.has_turn:
                failures.after_cursor(self, ex)
            raise
        finally:
            if taken:
                give(conn)

    return executemany


def _replacement(cls: type, name: str, make: Callable[[Any], Any]) -> Replacement:
    def in_turn(original: Any) -> Any:  # noqa: ANN401
        return taking_turn(cls, name, original, failures.after_cursor) or make(original)

    return Replacement(cls, name, in_turn if cls is cursor else make)


REPLACEMENTS = [
    *(_replacement(connection, name, _of_connection) for name in _CONNECTION),
    *(_replacement(connection, name, _attribute) for name in _ATTRIBUTES),
    *(_replacement(cursor, name, _of_cursor) for name in _CURSOR),
    *(_replacement(cursor, name, _of_named_cursor) for name in _NAMED_CURSOR),
    *(_replacement(cursor, name, _without_arguments) for name in _WITHOUT_ARGUMENTS),
    _replacement(cursor, "execute", _execute),
    _replacement(cursor, "executemany", _executemany),
]
"""The methods that take a turn. Install them after the methods that they wrap."""
