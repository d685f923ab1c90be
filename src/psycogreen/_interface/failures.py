"""Do what psycopg2 does after an error in blocking mode, but not in green mode.

These functions are called with the exception of a connection's or a cursor's method, while
the method still has the turn on the connection.
"""

from __future__ import annotations

from contextlib import suppress

import psycopg2
from psycopg2.extensions import STATUS_READY, connection, cursor

from psycogreen._interface.copying import end_refused_copy
from psycogreen._interface.members import Member

_cursor = Member(psycopg2.Error, "cursor")
_pgerror = Member(psycopg2.Error, "pgerror")

# The base type's descriptor: psycopg2 does not use a subclass's attribute.
_connection_of = vars(cursor)["connection"].__get__

# A replication connection does not let its own attribute be read.
_autocommit_of = vars(connection)["autocommit"].__get__


def after_cursor(self: cursor, error: BaseException) -> None:
    """Complete *error*; if it refuses a COPY, end the COPY."""
    conn = _connection_of(self)
    if conn is None or not isinstance(error, psycopg2.Error):
        return
    if conn.closed:
        after_connection(conn, error)
        # psycopg2 does not set the cursor if BEGIN has failed.
        if error.pgerror and (_autocommit_of(conn) or conn.status != STATUS_READY):
            _cursor.set(error, self)
    else:
        # The server's error at the end of the COPY adds nothing to psycopg2's.
        with suppress(psycopg2.Error):
            end_refused_copy(conn)


def after_connection(self: connection, error: BaseException) -> None:
    """Set the ``pgerror`` of *error* if it is libpq's error about a lost session.

    In green mode ``poll()`` raises this error, and does not set ``pgerror``.
    """
    # Exactly this class: its subclasses are psycogreen's timeouts.
    if self.closed and type(error) is psycopg2.OperationalError and not error.pgerror:
        _pgerror.set(error, str(error))
