"""Connecting again inside a connection object, with other hosts.

libpq has no function by which a connection attempt leaves a host. So it gets a new
attempt, which takes the place of the old one in psycopg2's object: the application's
connection factory is called once, whatever the hosts do.
"""

from __future__ import annotations

import ctypes

import psycopg2
from psycopg2.extensions import connection

from psycogreen._wait.libpq import CONNECTION_BAD, libpq, pgconn


def restart(conn: connection, dsn: str) -> None:
    """Let *conn*, which is connecting, begin again with *dsn*.

    Wait for its new socket next, until it may be written. Raise
    `psycopg2.OperationalError` if every host fails at once.
    """
    former = pgconn(conn)
    place = _place(conn, former)
    library = libpq()
    begun = library.PQconnectStart(dsn.encode())
    if library.PQstatus(begun) == CONNECTION_BAD:
        error = library.PQerrorMessage(begun).decode(errors="replace")
        library.PQfinish(begun)
        raise psycopg2.OperationalError(error)
    # What psycopg2 does with a connection that it has begun.
    processor = library.PQsetNoticeProcessor(former, None, None)
    library.PQsetNoticeProcessor(begun, processor, id(conn))
    library.PQsetnonblocking(begun, 1)
    place.value = begun
    library.PQfinish(former)


def _place(conn: connection, address: int) -> ctypes.c_void_p:
    """Return the pointer to the ``PGconn`` in the structure of *conn*.

    psycopg2 does not tell where it is. What it points to is known, and nothing else
    in the structure is at that address.
    """
    size = ctypes.sizeof(ctypes.c_void_p)
    places = range(id(conn), id(conn) + connection.__basicsize__, size)
    pointers = [ctypes.c_void_p.from_address(place) for place in places]
    [found] = [pointer for pointer in pointers if pointer.value == address]
    return found
