"""COPY, and read and write a large object, in one of the ways. A process of a benchmark.

Usage: copies.py WAY ROWS MEGABYTES

The variable DSN says where the server is. Every operation is done three times: to make
all warm, to take its time, and to find out for how long the loop stands still, which
costs time itself. A line of JSON tells what each operation took.
"""

from __future__ import annotations

import functools
import io
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from stalls import longest_stall
from ways import WAYS, RunAll

PIECE = 65536

Operation = Callable[[], object]


class Copies:
    """COPY of so many rows, out of a table and into it."""

    def __init__(self, conn: Any, rows: int) -> None:  # noqa: ANN401
        """Make the table."""
        self._cursor = conn.cursor()
        self._cursor.execute("create temporary table rows (n int, t text)")
        self._data = "".join(
            f"{n}\trow number {n % 10}\n" for n in range(rows)
        ).encode()
        self.copy_in()

    def copy_in(self) -> None:
        """Copy into the table."""
        self._cursor.execute("truncate rows")
        self._cursor.copy_expert("copy rows from stdin", io.BytesIO(self._data))

    def copy_out(self) -> None:
        """Copy out of the table."""
        file = io.BytesIO()
        self._cursor.copy_expert("copy rows to stdout", file)
        assert file.tell() == len(self._data)


class LargeObject:
    """A large object of so many megabytes, written and read."""

    def __init__(self, conn: Any, megabytes: int) -> None:  # noqa: ANN401
        """Make it."""
        self._object = conn.lobject(mode="wb")
        self._data = memoryview(bytes(range(250)) * 4000 * megabytes)
        self.write(len(self._data))

    def write(self, size: int) -> None:
        """Write it in pieces of *size* bytes."""
        self._object.seek(0)
        for start in range(0, len(self._data), size):
            self._object.write(bytes(self._data[start : start + size]))

    def read(self, size: int) -> None:
        """Read it in pieces of *size* bytes."""
        self._object.seek(0)
        read = 0
        while data := self._object.read(size):
            read += len(data)
        assert read == len(self._data)


def operations(
    connect: Callable[..., Any], rows: int, megabytes: int
) -> dict[str, Operation]:
    """Return what is measured, by its name, all on a connection of its own."""
    conn = connect(os.environ["DSN"])
    copies = Copies(conn, rows)
    large = LargeObject(conn, megabytes)
    whole = megabytes * 1_000_000
    return {
        "COPY out": copies.copy_out,
        "COPY in": copies.copy_in,
        "write a large object": functools.partial(large.write, whole),
        "read it": functools.partial(large.read, whole),
        "write it in pieces of 64 kB": functools.partial(large.write, PIECE),
        "read it in pieces of 64 kB": functools.partial(large.read, PIECE),
    }


def measure(run_all: RunAll, operation: Operation, framework: str) -> dict[str, float]:
    """Return what *operation* takes, in seconds."""
    run_all([operation])
    cpu, wall = time.process_time(), time.perf_counter()
    run_all([operation])
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    stall = 0.0 if framework == "threads" else longest_stall(run_all, operation)
    return {"seconds": wall, "CPU seconds": cpu, "longest stall": stall}


def main() -> None:
    """Measure each operation."""
    name, rows, megabytes = sys.argv[1:]
    way = WAYS[name]
    connect, run_all = way.begin()
    found = operations(connect, int(rows), int(megabytes))
    for operation, run in found.items():
        result = measure(run_all, run, way.framework)
        print(json.dumps({"operation": operation, **result}))


if __name__ == "__main__":
    main()
