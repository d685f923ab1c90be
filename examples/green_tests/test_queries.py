"""Tests of code that runs in greenlets."""

import gevent
import psycopg2
from psycopg2.extensions import connection


def test_at_once() -> None:
    """Each greenlet needs a connection of its own."""

    def query(n: int) -> int:
        cursor = psycopg2.connect("").cursor()
        cursor.execute("select %s, pg_sleep(0.1)", (n,))
        return int(cursor.fetchone()[0])

    jobs = [gevent.spawn(query, n) for n in range(5)]
    gevent.joinall(jobs, raise_error=True)
    assert [job.value for job in jobs] == [0, 1, 2, 3, 4]


def test_rolled_back(conn: connection) -> None:
    """What a test leaves uncommitted is gone when its connection is closed."""
    conn.cursor().execute("create table not_kept (n int)")
