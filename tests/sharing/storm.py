"""A storm: many greenlets that share a few connections.

Usage: storm.py BACKEND SECONDS SEED

They query, commit, roll back and close, are killed and time out. Print the numbers of
operations and of errors as JSON.
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
NAME = "psycogreen-storm"


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

    def _await(self, name: str, condition) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            if time.monotonic() > deadline:
                self.wrong[name] += 1
                return
            self.green.sleep(0.02)

    def _is_idle(self) -> bool:
        conn = psycopg2.connect(self.dsn)
        cursor = conn.cursor()
        cursor.execute(
            "select count(*) from pg_stat_activity where application_name = %s", (NAME,)
        )
        [count] = cursor.fetchone()
        conn.close()
        return count == 0

    def _go(self) -> None:
        actions = [self._ask] * 30 + [self._commit] * 5 + [self._roll_back] * 5
        actions += [self._close]
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
        except psycopg2.Error as ex:
            self.wrong[f"{type(ex).__name__}: {ex}"] += 1
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
        self.counts["asked"] += 1
        token = self.counts["asked"]
        size = self.random.choice([1, 10, 1000, 100_000])
        seconds = self.random.choice([0] * 50 + [0.01] * 5 + [10])
        cursor = conn.cursor()
        cursor.execute(
            "select %s, repeat('x', %s), pg_sleep(%s)", (token, size, seconds)
        )
        answer, text, _ = cursor.fetchone()
        self.wrong["crossed answer"] += answer != token or len(text) != size

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
