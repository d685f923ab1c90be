"""A storm: many greenlets that share a few connections.

Usage: storm.py BACKEND SECONDS SEED

They query, copy in both directions, write and read large objects, commit, roll back and
close, are killed and time out. Print the numbers of operations and of errors as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))

from contract.run import patch

BACKEND, SECONDS, SEED = sys.argv[1:]
patch(BACKEND)

import psycopg2
from contract import frameworks
from psycopg2.extensions import connection

import psycogreen
from psycogreen._interface import turns

GREENLETS = 200
CONNECTIONS = 20
ROWS = 300
"""The rows of each COPY."""
NAME = "psycogreen-storm"


class File:
    """A file that only reads, or only writes."""

    def __init__(self, **methods) -> None:
        """Have these methods."""
        vars(self).update(methods)


class Storm:
    """The greenlets, their connections, and a greenlet that kills some of them."""

    def __init__(self, dsn: str, seconds: float, random: Random) -> None:
        """Connect. What is random is up to *random*."""
        self.green = frameworks.current()
        self.dsn = dsn
        self.random = random
        self.end = time.monotonic() + seconds
        self.counts: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.shared = [self._connect() for _ in range(CONNECTIONS)]
        self._execute("drop table if exists storm")
        self._execute("create table storm (token int, n int)")

    def _execute(self, statement: str) -> list[tuple[int, ...]]:
        """Execute a statement on a connection of its own; return its rows."""
        conn = psycopg2.connect(self.dsn)
        conn.autocommit = True
        cursor = conn.cursor()
        cursor.execute(statement)
        rows = cursor.fetchall() if cursor.description else []
        conn.close()
        return rows

    def _connect(self) -> connection:
        return psycopg2.connect(self.dsn, application_name=NAME)

    def run(self) -> None:
        """Let them loose, and wait for the end of all."""
        crowd = [self.green.spawn(self._go) for _ in range(GREENLETS)]
        while time.monotonic() < self.end:
            self.green.sleep(self.random.uniform(0, 0.1))
            n = self.random.randrange(GREENLETS)
            self.green.kill(crowd[n])
            self.counts["kills"] += 1
            crowd[n] = self.green.spawn(self._go)
        self._await("greenlets frozen", lambda: all(task.dead for task in crowd))
        self.wrong["left in a queue"] += turns.queued()
        for conn in self.shared:
            conn.close()
        self._await("left at the server", self._is_idle)
        # Each COPY has come to the table whole, or not at all.
        for count, least, greatest in self._execute(
            "select count(*), min(n), max(n) from storm group by token"
        ):
            self.wrong["torn rows"] += (count, least, greatest) != (ROWS, 1, ROWS)
        self._execute("drop table storm")

    def _await(self, name: str, condition) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            if time.monotonic() > deadline:
                self.wrong[name] += 1
                return
            self.green.sleep(0.02)

    def _is_idle(self) -> bool:
        [(count,)] = self._execute(
            f"select count(*) from pg_stat_activity where application_name = '{NAME}'"
        )
        return count == 0

    def _go(self) -> None:
        actions = [self._ask] * 30 + [self._commit] * 5 + [self._roll_back] * 5
        actions += [self._copy_out] * 5 + [self._copy_in] * 5 + [self._close]
        actions += [self._large_object] * 3
        while time.monotonic() < self.end:
            n = self.random.randrange(CONNECTIONS)
            self._act(n, self.random.choice(actions))

    def _act(self, n: int, action) -> None:
        """Do something with the connection at that place, if the time suffices."""
        conn = self.shared[n]
        timeout = self.green.Timeout
        try:
            with timeout(self.random.choice([0.05, 0.5, 5, 5, 5])) as own:
                action(conn)
                self.counts[action.__name__] += 1
        except timeout as ex:
            self.wrong["foreign Timeout"] += ex is not own
            self.counts["timeouts"] += 1
        except psycopg2.InterfaceError:
            # Somebody has closed it, or was interrupted in a query.
            self.wrong["refused and not closed"] += not conn.closed
            self.counts["closed"] += 1
        except psycopg2.ProgrammingError as ex:
            # Somebody has ended the transaction of the large object.
            self.wrong[f"refused: {ex}"] += "isn't valid anymore" not in str(ex)
            self.counts["stale"] += 1
        except psycopg2.Error as ex:
            # A large object whose connection was closed while it waited for its turn.
            is_gone = conn.closed and "connection pointer is NULL" in str(ex)
            self.wrong[f"{type(ex).__name__}: {ex}"] += not is_gone
            self.counts["closed"] += is_gone
        finally:
            if conn.closed and self.shared[n] is conn:
                self._replace(n)

    def _replace(self, n: int) -> None:
        conn = self._connect()
        # While it connected somebody else may have done so.
        if self.shared[n].closed:
            conn, self.shared[n] = None, conn
        if conn:
            conn.close()

    def _ask(self, conn: connection) -> None:
        """Ask the server for a token that nobody else asks for."""
        token = self._token()
        size = self.random.choice([1, 10, 1000, 100_000])
        seconds = self.random.choice([0] * 50 + [0.01] * 5 + [10])
        cursor = conn.cursor()
        cursor.execute(
            "select %s, repeat('x', %s), pg_sleep(%s)", (token, size, seconds)
        )
        answer, text, _ = cursor.fetchone()
        self.wrong["crossed answer"] += answer != token or len(text) != size

    def _token(self) -> int:
        self.counts["asked"] += 1
        return self.counts["asked"]

    def _copy_out(self, conn: connection) -> None:
        """Read rows that nobody else asks for, into a file that lets others run."""
        token = self._token()
        rows = []

        def write(row: bytes) -> None:
            rows.append(row)
            if len(rows) % 50 == 0:
                self.green.sleep(0)

        query = f"select {token}, n from generate_series(1, {ROWS}) n"
        conn.cursor().copy_expert(f"copy ({query}) to stdout", File(write=write))
        expected = [b"%d\t%d\n" % (token, n) for n in range(1, ROWS + 1)]
        self.wrong["crossed rows"] += rows != expected

    def _copy_in(self, conn: connection) -> None:
        """Write rows that nobody else writes, from a file that lets others run."""
        token = self._token()
        lines = [b"%d\t%d\n" % (token, n) for n in range(1, ROWS + 1)]
        pieces = [b"".join(lines[n : n + 50]) for n in range(0, ROWS, 50)]

        def read(_size: int) -> bytes:
            self.green.sleep(0)
            return pieces.pop(0) if pieces else b""

        cursor = conn.cursor()
        cursor.copy_from(File(read=read), "storm")
        self.wrong["crossed row count"] += cursor.rowcount != ROWS

    def _large_object(self, conn: connection) -> None:
        """Write a large object that nobody else writes, and read it."""
        content = b"%d " % self._token() * 1000
        large = conn.lobject(0, "wb")
        large.write(content)
        large.seek(0)
        self.wrong["crossed large object"] += large.read() != content
        # Some are left to their destructor, during whatever others do.
        if self.random.random() < 0.5:
            large.close()

    def _commit(self, conn: connection) -> None:
        conn.commit()

    def _roll_back(self, conn: connection) -> None:
        conn.rollback()

    def _close(self, conn: connection) -> None:
        conn.close()


def main() -> None:
    """Go through the storm; report."""
    psycogreen.patch_psycopg()
    storm = Storm(os.environ["DSN"], float(SECONDS), Random(int(SEED)))
    storm.run()
    print(json.dumps({"counts": storm.counts, "wrong": +storm.wrong}))


if __name__ == "__main__":
    main()
