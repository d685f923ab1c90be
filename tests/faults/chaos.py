"""Chaos: greenlets that share connections, are killed and run out of time."""

from __future__ import annotations

import os
import time
from collections import Counter
from random import Random

import psycopg2
from faults import operations
from faults.bench import Bench, Trial
from psycopg2.extensions import connection

GREENLETS = 100
# How long queries last. Few are left to be interrupted: a connection each, or the
# server would do nothing but begin and end processes.
SECONDS = [0.0] * 30 + [0.01] * 10 + [0.05] * 5 + [30.0]

SEED_VARIABLE = "PSYCOGREEN_CHAOS_SEED"
SECONDS_VARIABLE = "PSYCOGREEN_CHAOS_SECONDS"


class Chaos:
    """Greenlets that query, and one that kills some of them, for some seconds."""

    def __init__(self, bench: Bench, random: Random, seconds: float) -> None:
        """Use *bench*; what is random is up to *random*."""
        self.bench = bench
        self.random = random
        self.end = time.monotonic() + seconds
        self.idle: list[connection] = []
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        """Start all greenlets, and wait for their ends."""
        green = self.bench.green
        crowd = [green.spawn(self._query_on) for _ in range(GREENLETS)]
        while time.monotonic() < self.end:
            green.sleep(self.random.uniform(0, 0.2))
            n = self.random.randrange(GREENLETS)
            green.kill(crowd[n])
            self.counts["kills"] += 1
            crowd[n] = green.spawn(self._query_on)
        self.bench.await_(lambda: all(task.dead for task in crowd))
        self.bench.violations["hangs"] += sum(not task.dead for task in crowd)
        while self.idle:
            self.idle.pop().close()

    def _query_on(self) -> None:
        while time.monotonic() < self.end:
            self._query()

    def _query(self) -> None:
        """Query, if the time that there is happens to suffice."""
        timeout = self.bench.green.Timeout
        conn = None
        try:
            with timeout(self.random.choice([0.1, 0.5, 1, 5])) as own:
                conn = self.idle.pop() if self.idle else self.bench.connect()
                self._ask(conn)
        except timeout as ex:
            self.bench.violations["foreign Timeout"] += ex is not own
            self.counts["timeouts"] += 1
        except psycopg2.Error as ex:
            # Nothing is wrong with the server.
            self.bench.violations[f"raises {type(ex).__name__}"] += 1
        finally:
            if conn and not conn.closed:
                self.idle.append(conn)

    def _ask(self, conn: connection) -> None:
        """Ask the server for a token that nobody else asks for."""
        self.counts["queries"] += 1
        token = self.counts["queries"]
        cursor = conn.cursor()
        size = self.random.choice([1, 10, 10_000, 100_000])
        cursor.execute(
            "select %s, repeat('x', %s), pg_sleep(%s)",
            (token, size, self.random.choice(SECONDS)),
        )
        answer, text, _ = cursor.fetchone()
        if answer != token or len(text) != size:
            self.bench.violations["crossed answer"] += 1
        if self.random.random() < 0.3:
            conn.commit()
        self.counts["answers"] += 1


def chaos(bench: Bench) -> int:
    """Run the chaos; return how many queries were answered."""
    random = Random(int(os.environ[SEED_VARIABLE]))
    bench.try_out(Trial.perform, operations.CONNECT)
    with bench.judged():
        crowd = Chaos(bench, random, float(os.environ[SECONDS_VARIABLE]))
        crowd.run()
    # A cancel request that arrives before the server has read the statement has no effect.
    # On a loaded machine that happens to a few. Without cancelling, hundreds are left.
    lost = bench.violations.pop("backend left active", 0)
    if lost > (crowd.counts["kills"] + crowd.counts["timeouts"]) // 100:
        bench.violations["backend left active"] = lost
    bench.lab.terminate_all()
    if not all(crowd.counts[name] for name in ("kills", "timeouts", "answers")):
        bench.violations["no chaos"] += 1
    return crowd.counts["answers"]
