"""What psycopg2 does after an error when it blocks, and leaves undone in green mode.

It is called with what a method of a connection or a cursor has raised, while the method
still has the turn on the connection.
"""

from __future__ import annotations

from contextlib import suppress

import psycopg2
from psycopg2.extensions import STATUS_READY, connection, cursor, get_wait_callback

from psycogreen._interface.copying import end_refused_copy
from psycogreen._interface.members import Member

_cursor = Member(psycopg2.Error, "cursor")
_pgerror = Member(psycopg2.Error, "pgerror")

# The type's own: what a subclass makes of the attribute is not what psycopg2 uses.
_connection_of = vars(cursor)["connection"].__get__


def after_cursor(self: cursor, error: BaseException) -> None:
    """Complete *error*, and end the COPY that it refuses, if that is what it does."""
    conn = _connection_of(self)
    if conn is None or not isinstance(error, psycopg2.Error):
        return
    if conn.closed:
        after_connection(conn, error)
        # psycopg2 names no cursor if it was BEGIN that has failed.
        if error.pgerror and (conn.autocommit or conn.status != STATUS_READY):
            _cursor.set(error, self)
    elif get_wait_callback():
        # What the server says to its end adds nothing to psycopg2's refusal.
        with suppress(psycopg2.Error):
            end_refused_copy(conn)


def after_connection(self: connection, error: BaseException) -> None:
    """Let *error* have a ``pgerror`` if it is what libpq says of a lost session.

    In green mode that comes out of ``poll()``, which does not set it.
    """
    # Exactly of this class: not what has interrupted a wait.
    if self.closed and type(error) is psycopg2.OperationalError and not error.pgerror:
        _pgerror.set(error, str(error))
