"""psycopg2's own pool, made to wait when all of its connections are in use.

python pool_psycopg2.py
"""

from gevent import monkey

monkey.patch_all()

import psycogreen

psycogreen.patch_psycopg()

import os
from collections.abc import Iterator
from contextlib import contextmanager

from gevent.lock import BoundedSemaphore
from gevent.pool import Pool
from psycopg2.extensions import connection
from psycopg2.pool import ThreadedConnectionPool


class WaitingPool:
    """`psycopg2.pool.ThreadedConnectionPool` with a place to wait before it."""

    def __init__(self, size: int, dsn: str) -> None:
        """Open connections to *dsn* as they are needed, *size* at the most."""
        # As many to keep as to have: the pool closes what is put back beyond that.
        self._pool = ThreadedConnectionPool(size, size, dsn)
        self._free = BoundedSemaphore(size)

    @contextmanager
    def connection(self) -> Iterator[connection]:
        """Lend a connection for a transaction, committed unless an error ends it."""
        with self._free:
            conn = self._pool.getconn()
            try:
                yield conn
                conn.commit()
            finally:
                # It rolls back what is not committed, and drops a connection that
                # an interrupted wait has closed.
                self._pool.putconn(conn)


def query(n: int) -> int:
    """Wait for a connection, then for PostgreSQL."""
    with pool.connection() as conn, conn.cursor() as cursor:
        cursor.execute("select %s, pg_sleep(0.05)", (n,))
        return int(cursor.fetchone()[0])


pool = WaitingPool(5, os.environ.get("DSN", ""))

if __name__ == "__main__":
    print(sum(Pool(50).map(query, range(50))))
