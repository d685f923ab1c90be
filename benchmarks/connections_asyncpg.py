"""Connect and close repeatedly with asyncpg on uvloop. A process of a benchmark.

Usage: connections_asyncpg.py WAY GREENLETS CONNECTIONS...

The arguments, the output and the variables are those of connections.py; each greenlet
is a task of asyncio here. WAY is not used.
"""

from __future__ import annotations

import asyncio
import os
import sys

import uvloop
from queries import stretch
from queries_asyncpg import connect


async def work(dsn: str, connections: int) -> None:
    """Make so many connections, one after another."""
    for _ in range(connections):
        conn = await connect(dsn)
        await conn.close()


async def main() -> None:
    """Run every stretch."""
    _, tasks, *stretches = sys.argv[1:]
    dsn = os.environ["DSN"]
    for connections in map(int, stretches):
        each = connections // int(tasks)
        with stretch(each * int(tasks)):
            await asyncio.gather(*(work(dsn, each) for _ in range(int(tasks))))
    os.getppid()


if __name__ == "__main__":
    uvloop.run(main())
