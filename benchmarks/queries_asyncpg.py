"""Run a query repeatedly with asyncpg on uvloop. A process of a benchmark.

Usage: queries_asyncpg.py WAY GREENLETS QUERIES...

The arguments, the output and the variables are those of queries.py; each greenlet
is a task of asyncio here. WAY is not used.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import asyncpg
import uvloop
from psycopg2.extensions import parse_dsn
from queries import stretch


async def connect(dsn: str) -> Any:  # noqa: ANN401
    """Connect to the server that libpq's *dsn* names."""
    given = parse_dsn(dsn)
    return await asyncpg.connect(
        host=given["host"],
        port=int(given["port"]),
        user=given["user"],
        password=given.get("password"),
        database=given["dbname"],
    )


async def work(conn: Any, sql: str, queries: int) -> None:  # noqa: ANN401
    """Make *count* queries."""
    for _ in range(queries):
        await conn.fetch(sql)


async def main() -> None:
    """Run every stretch."""
    _, tasks, *stretches = sys.argv[1:]
    connections = [await connect(os.environ["DSN"]) for _ in range(int(tasks))]
    sql = os.environ.get("SQL", "select 1")
    for queries in map(int, stretches):
        each = queries // len(connections)
        with stretch(each * len(connections)):
            await asyncio.gather(*(work(conn, sql, each) for conn in connections))
    os.getppid()
    for conn in connections:
        await conn.close()


if __name__ == "__main__":
    uvloop.run(main())
