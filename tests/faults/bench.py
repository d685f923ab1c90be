"""Try faults in the process under test, which is monkey-patched."""

from __future__ import annotations

import ctypes  # noqa: F401 - libffi may open a file of its own then: not a leak
import gc
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg2
from contract.frameworks import Framework
from faults.operations import Operation
from greenlet import getcurrent, greenlet
from psycopg2.extensions import connection
from ticker import Ticker

PATIENCE = 10.0
"""Seconds after which an operation counts as hanging."""

STALL = 1.5
"""Seconds for which the loop may stand still because the machine is busy."""

BACKEND_END = 1.0
"""Calm seconds that the server has to end a query that no greenlet waits for."""


class CalmClock:
    """A clock that stands still while a process of this machine waits for a processor.

    A loaded machine must not look like a query that goes on. Where Linux does not report
    the load, the clock runs at a fifth of the time instead.
    """

    def __init__(self) -> None:
        """Start at 0."""
        self._begin = time.monotonic()
        self._waited = self._read()

    def seconds(self) -> float:
        """Return the calm seconds since the start."""
        elapsed = time.monotonic() - self._begin
        if self._waited is None:
            return elapsed / 5
        return elapsed - (self._read() - self._waited)

    @staticmethod
    def _read() -> float | None:
        """Return the seconds for which some process has waited for a processor."""
        try:
            with open("/proc/pressure/cpu") as file:
                some = file.readline()
        except OSError:
            return None
        return int(some.rpartition("total=")[2]) / 1e6


class Lab:
    """The lab in the process that runs this one: its methods, by their names."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return what has the method *name* called over there."""

        def call(*arguments: object) -> object:
            send(call=[name, *arguments])
            return json.loads(sys.stdin.readline())

        return call


def send(**message: object) -> None:
    """Send a message to the process that runs this one."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


class Refused(Exception):
    """psycopg2 does not do the operation at all with this callback."""


class Trial:
    """One operation on its own connection, and its result."""

    def __init__(self, bench: Bench, operation: Operation, **options: object) -> None:
        """Connect with *options*."""
        self._bench = bench
        self._operation = operation
        self._options = {**operation.options, **options}
        self.streams = operation.streams
        self.conn: connection | None = None
        self.task: Any = None
        self.ended = False
        self.error: BaseException | None = None
        self.interruptions: list[BaseException] = []
        """What may come out of it, beside psycopg2's errors."""

    def prepare(self) -> None:
        """Do what comes before the operation."""
        if self._operation.run:
            self.conn = self._bench.connect(**self._options)
            self._operation.prepare(self.conn)

    def perform(self) -> None:
        """Do the operation."""
        if self._operation.run:
            self._operation.run(self.conn)
        else:
            self.conn = self._bench.connect(**self._options)

    @contextmanager
    def deadline(self, seconds: float) -> Iterator[None]:
        """Let the framework's own Timeout end the block."""
        with self._bench.green.Timeout(seconds) as timeout:
            self.interruptions.append(timeout)
            yield

    def is_expected(self) -> bool:
        """Return whether it raised nothing, or what it may."""
        return (
            self.error is None
            or isinstance(self.error, psycopg2.Error)
            or any(self.error is thrown for thrown in self.interruptions)
        )


class Bench:
    """A framework, a server, and the trials made with them."""

    def __init__(self, green: Framework) -> None:
        """Begin with no trials."""
        self.green = green
        self.lab = Lab()
        self.dsn = os.environ["PSYCOGREEN_TEST_DSN"]
        self.trials: list[Trial] = []
        self.violations: Counter[str] = Counter()

    def connect(self, seconds: float = 0, **options: object) -> connection:
        """Connect to the server, for operations that last *seconds*."""
        return psycopg2.connect(
            self.dsn,
            application_name="fault",
            options=f"-c fault.seconds={seconds}",
            **{"sslmode": "disable", **options},
        )

    def start(
        self,
        work: Callable[[Trial], object],
        operation: Operation,
        **options: object,
    ) -> Trial:
        """Begin a trial of *operation*: do *work* with it, in a greenlet of its own."""
        trial = Trial(self, operation, **options)

        def run() -> None:
            try:
                work(trial)
            except BaseException as ex:
                trial.error = ex
            trial.ended = True

        self.trials.append(trial)
        trial.task = self.green.spawn(run)
        return trial

    def try_out(
        self,
        work: Callable[[Trial], object],
        operation: Operation,
        **options: object,
    ) -> None:
        """Do *work* once with no fault: it must go well, and makes what is kept."""
        trial = self.start(work, operation, **options)
        self.finish(trial)
        if "asynchronous callback" in str(trial.error):
            raise Refused from trial.error
        if trial.error or self.violations:
            msg = f"without a fault: {trial.error!r}, {dict(self.violations)}"
            raise RuntimeError(msg) from trial.error

    def finish(self, *trials: Trial) -> None:
        """Wait until *trials* have ended, and judge how."""
        self.await_(lambda: all(trial.ended for trial in trials))
        for trial in trials:
            if not trial.ended:
                self.violations["hangs"] += 1
                self.green.kill(trial.task)
                continue
            if not trial.is_expected():
                self.violations[f"raises {type(trial.error).__name__}"] += 1
            self._judge_connection(trial)

    def await_(
        self, condition: Callable[[], object], seconds: float = PATIENCE
    ) -> bool:
        """Wait until *condition* holds; return whether it did in time."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                return False
            self.green.sleep(0.01)
        return True

    def await_active(self) -> None:
        """Wait until a query is under way at the server. The loop stands still meanwhile."""
        end = time.monotonic() + STALL / 2
        while not self.lab.active() and time.monotonic() < end:
            pass  # the lab has asked the server

    def _await_backends(self) -> bool:
        """Wait until no query goes on; return whether that was in time."""
        clock = CalmClock()
        return (
            self.await_(lambda: not self.lab.active() or clock.seconds() > BACKEND_END)
            and not self.lab.active()
        )

    def _judge_connection(self, trial: Trial) -> None:
        """See that the connection is closed or usable, and close it.

        One whose operation went well may find out when it is next used.
        """
        conn, trial.conn = trial.conn, None
        if conn is None:
            return
        sound = conn.closed or trial.streams or self._is_usable(conn)
        if not sound and (trial.error or not conn.closed):
            self.violations["connection neither closed nor usable"] += 1
        conn.close()

    def _is_usable(self, conn: connection) -> bool:
        with suppress(psycopg2.Error, self.green.Timeout), self.green.Timeout(PATIENCE):
            conn.rollback()
            cursor = conn.cursor()
            cursor.execute("select 42")
            return bool(cursor.fetchone() == (42,))
        return False

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Check that the trials of the block leave nothing, and disturb no other greenlet."""
        before = Resources()
        with self._bystander():
            yield
            if not self._await_backends():
                self.violations["backend left active"] += self.lab.active()
        self.lab.close_proxies()
        # The errors are kept meanwhile, as a log or a debugger would keep them.
        self.await_(lambda: not Resources().more_than(before))
        self.violations.update(Resources().more_than(before))

    @contextmanager
    def _bystander(self) -> Iterator[None]:
        """Check that an unrelated greenlet goes on during the block."""
        answers, ticker = [], Ticker(self.green.sleep)

        def query() -> None:
            conn = psycopg2.connect(self.dsn)
            with conn.cursor() as cursor:
                while not stopped:
                    cursor.execute("select %s", (len(answers),))
                    answers.append(cursor.fetchone()[0])
                    self.green.sleep(0.01)
            conn.close()

        stopped: list[bool] = []
        tasks = [self.green.spawn(query), self.green.spawn(ticker.run)]
        try:
            yield
            self.await_(lambda: len(answers) > 1)
        finally:
            if ticker.stall() > STALL:
                self.violations["the loop stands still"] += 1
            stopped.append(True)
            self.green.kill(tasks[1])
        if answers != list(range(len(answers))) or not answers:
            self.violations["another greenlet's query fails"] += 1
        self.green.wait(tasks[0])


class Resources:
    """How much of what can leak there is."""

    def __init__(self) -> None:
        """Count."""
        gc.collect()
        here = _root(getcurrent())
        self.greenlets = sum(
            # Not those of the native threads in which gevent resolves names.
            isinstance(thing, greenlet) and not thing.dead and _root(thing) is here
            for thing in gc.get_objects()
        )
        self.descriptors = len(os.listdir("/proc/self/fd"))

    def more_than(self, before: Resources) -> Counter[str]:
        """Return how much more there is than *before*."""
        return +Counter(
            {
                "descriptor left": self.descriptors - before.descriptors,
                "greenlet left": self.greenlets - before.greenlets,
            }
        )


def _root(thing: greenlet) -> greenlet:
    """Return the greenlet that the thread of *thing* began with."""
    while thing.parent:
        thing = thing.parent
    return thing
