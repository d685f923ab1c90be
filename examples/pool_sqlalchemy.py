"""SQLAlchemy's pool, green: fifty queries at once over five connections.

python pool_sqlalchemy.py
"""

from gevent import monkey

monkey.patch_all()

import psycogreen

psycogreen.patch_psycopg()

import os

import psycopg2
from gevent.pool import Pool
from sqlalchemy import create_engine, text

engine = create_engine(
    "postgresql+psycopg2://",
    creator=lambda: psycopg2.connect(os.environ.get("DSN", "")),
    pool_size=5,
    max_overflow=0,  # no connection beyond these
    pool_timeout=30,  # seconds to wait for one
)


def query(n: int) -> int:
    """Wait for a connection, then for PostgreSQL."""
    with engine.connect() as connection:
        found = text("select :n + 0, pg_sleep(0.05)")
        return int(connection.execute(found, {"n": n}).scalar_one())


if __name__ == "__main__":
    print(sum(Pool(50).map(query, range(50))), engine.pool.status())
