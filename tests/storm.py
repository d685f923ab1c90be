"""A storm: all events that have ended the waits of a loop before, at the same time.

Usage: storm.py BACKEND SECONDS

The backends are those of the contract. Prints what has happened, and fails if a wait was
lost, an answer went astray, or descriptors or entries are left.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import sys
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from run import patch

patch(sys.argv[1])

import frameworks
import psycopg2
from greenlet import getcurrent, greenlet

import psycogreen
from psycogreen._wait import epoll, native

WORKERS = 8
SPARE = 4
GARBAGE = 16
KINDS = [
    *("answers", "destructors", "weak references", "raw greenlets"),
    *("threads", "children", "exhaustions"),
]
AGAIN = 0.01  # seconds
PATIENCE = 60  # seconds, for the end of a single query on a slow machine

psycogreen.patch_psycopg()
green = frameworks.current()
if green.name == "gevent":
    from gevent import get_hub as loop
else:
    from eventlet.hubs import get_hub as loop
parent = os.getpid()
happened: Counter[str] = Counter()
failures: list[str] = []

# Held by what makes descriptors that its framework cannot do without, and by what
# takes them all away.
descriptors = native.original("_thread", "allocate_lock")()


class Planned(Exception):
    """What a raw greenlet raises into the loop."""


class Count(logging.Handler):
    """Counts what psycogreen logs. Without a lock, for which the hub cannot wait."""

    def createLock(self) -> None:
        """Have none."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Count it at once. Since Python 3.13 `logging` takes a lock here."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Count it by the beginning of its text."""
        happened["log: " + str(record.msg).partition(":")[0]] += 1


def ask(conn: psycopg2.extensions.connection, seconds: float = 0.0) -> None:
    """Query, and note an answer that is another query's."""
    token = random.getrandbits(30)
    cursor = conn.cursor()
    cursor.execute("select %s, pg_sleep(%s)", (token, seconds))
    answer = cursor.fetchone()[0]
    if answer != token:
        failures.append(f"{answer} in the place of {token}")
    happened["answers"] += 1


def connect() -> psycopg2.extensions.connection:
    """Return a connection outside of transactions."""
    conn = psycopg2.connect(os.environ["DSN"])
    conn.autocommit = True
    return conn


# ---- what the garbage collector runs -------------------------------------------

spare: list[psycopg2.extensions.connection] = []
garbage: list[bool] = []


def ask_spare(kind: str) -> None:
    """Query with a connection that nobody uses, if there is one."""
    if os.getpid() != parent:
        return  # the connections are the parent's
    with suppress(IndexError):
        conn = spare.pop()
        try:
            ask(conn)
            happened[kind] += 1
        except BaseException as ex:
            failures.append(f"{kind}: {ex!r}")
            raise
        finally:
            spare.append(conn)


class Destroyed:
    """Garbage whose destructor queries."""

    def __init__(self) -> None:
        """Refer to itself: only the collector frees it."""
        self.itself = self
        garbage.append(True)

    def __del__(self) -> None:
        """Query."""
        garbage.pop()
        ask_spare("destructors")


class Watched:
    """Garbage whose end a weak reference tells, whose callback queries."""

    def __init__(self) -> None:
        """Refer to itself."""
        self.itself = self
        garbage.append(True)


references: set[weakref.ref[Watched]] = set()


def litter() -> None:
    """Leave garbage to the collector, unless it has enough.

    It frees nothing while a destructor waits. What piles up meanwhile is freed in one
    greenlet, one query after the other, and more is left meanwhile.
    """
    if len(garbage) >= GARBAGE:
        return
    Destroyed()

    def tell(reference: weakref.ref[Watched]) -> None:
        garbage.pop()
        references.discard(reference)
        ask_spare("weak references")

    # It must not end before the set has asked for the reference's hash.
    watched = Watched()
    references.add(weakref.ref(watched, tell))


# ---- what goes on --------------------------------------------------------------


def pause(seconds: float) -> None:
    """Sleep, even if a destructor's wait is given the switch that ends it.

    The collector may run a destructor after a framework's sleep() has started its timer
    and before it has switched to the hub. The timer then switches to the wait in the
    destructor, which goes on, and the sleep never ends. So this one fires again, until
    the sleep has ended.
    """
    sleeper = getcurrent()
    ended: list[bool] = []

    def fire() -> None:
        if not ended:
            call_later(AGAIN, fire)
            sleeper.switch()

    call_later(seconds, fire)
    try:
        loop().switch()
    finally:
        ended.append(True)


def call_later(seconds: float, function: Callable[[], object]) -> None:
    """Let this thread's hub call a function after so many seconds."""
    if green.name == "gevent":
        loop().loop.timer(seconds).start(function)
    else:
        loop().schedule_call_global(seconds, function)


def is_going(going: list[bool]) -> bool:
    """Return whether to go on; in a forked child, never return."""
    while os.getpid() != parent:
        pause(PATIENCE)
    return bool(going)


def work(going: list[bool], conn: psycopg2.extensions.connection) -> None:
    """Query on a connection of its own."""
    while is_going(going):
        litter()
        with green.Timeout(PATIENCE):
            ask(conn, random.choice([0, 0, 0.001, 0.005]))
    conn.close()


def fail_raw(going: list[bool], conn: psycopg2.extensions.connection) -> None:
    """Let raw greenlets query and raise into the loop."""
    while is_going(going):
        ended: list[bool] = []

        def run(ended: list[bool] = ended) -> None:
            if os.getpid() != parent:
                return
            try:
                ask(conn)
            finally:
                ended.append(True)
            happened["raw greenlets"] += 1
            raise Planned

        green.call_in_hub(greenlet(run, green.hub_greenlet()).switch)
        deadline = time.monotonic() + PATIENCE
        while not ended:
            if time.monotonic() > deadline:
                failures.append("a raw greenlet's wait was lost")
                return
            pause(0.005)
    conn.close()


def end_threads(going: list[bool]) -> None:
    """Let native threads with a loop of their own query, destroy it, and end."""
    while is_going(going):
        ended: list[bool] = []
        native.start_thread(lambda ended=ended: thread(ended))
        while not ended:
            pause(0.005)
        pause(0.02)


def thread(ended: list[bool]) -> None:
    """Query with a loop of this thread's own, twice, and end it both times."""
    try:
        with descriptors:
            for _ in range(2):
                with uncollected():
                    green.sleep(0)
                conn = connect()
                ask(conn, 0.001)
                conn.close()
                with uncollected():
                    end_hub()
        happened["threads"] += 1
    except BaseException as ex:
        failures.append(f"thread: {ex!r}")
    finally:
        ended.append(True)


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep destructors from querying while a framework makes or ends a loop.

    gevent's own sleep() ends with LoopExit if one does.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def end_hub() -> None:
    """End this thread's loop."""
    if green.name == "gevent":
        green.new_hub()
    else:
        from eventlet import hubs

        hubs.get_hub().abort(wait=True)
        del hubs._threadlocal.hub


def fork(going: list[bool]) -> None:
    """Fork children that query with a loop and a connection of their own."""
    while is_going(going):
        if not descriptors.acquire(False):
            pause(0.005)
            continue
        pid = os.fork()
        if not pid:
            child()
        descriptors.release()
        deadline = time.monotonic() + PATIENCE
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                failures.append("a child does not end")
                os.kill(pid, 9)
                deadline += PATIENCE
            pause(0.01)
        if ended[1]:
            failures.append(f"a child ended with {ended[1]}")
        happened["children"] += 1
        pause(0.1)


def child() -> None:
    """Query, and end."""
    status = 1
    try:
        with green.Timeout(PATIENCE):
            ask(connect(), 0.001)
        status = 0
    finally:
        os._exit(status)


def exhaust(going: list[bool]) -> None:
    """Take all descriptors away while a set has to be replaced, and give them back."""
    while is_going(going):
        if not descriptors.acquire(False):
            pause(0.005)
            continue
        conn = connect()
        ask(conn)
        duplicate = os.dup(conn.fileno())
        taken = []
        try:
            with suppress(OSError):
                while True:
                    taken.append(open(os.devnull))  # noqa: SIM115
            # The server hangs up, which the duplicate tells from now on.
            conn.close()
            pause(0.02)
        finally:
            for file in taken:
                file.close()
            pause(0.01)
            os.close(duplicate)
            descriptors.release()
        happened["exhaustions"] += 1
        pause(0.05)


# ---- the storm -----------------------------------------------------------------


def prepare() -> None:
    """Let errors that are planned not be printed, and descriptors be few."""
    import resource

    warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
    logger = logging.getLogger("psycogreen")
    logger.addHandler(Count())
    logger.propagate = False
    if green.name == "gevent":
        type(green.hub_greenlet()).NOT_ERROR += (Planned,)
    else:
        from eventlet import hubs

        hubs.get_hub().debug_exceptions = False
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))


def storm(seconds: float) -> None:
    """Let everything go on for so long, and wait until all has ended.

    It goes on until each kind of thing has happened, however slow the machine is.
    """
    going = [True]
    spare.extend(connect() for _ in range(SPARE))
    # Connected before there are no descriptors left at times.
    conns = [connect() for _ in range(WORKERS + 1)]
    tasks = [green.spawn(fail_raw, going, conns.pop())]
    tasks += [green.spawn(work, going, conns.pop()) for _ in range(WORKERS)]
    tasks += [green.spawn(other, going) for other in (end_threads, fork, exhaust)]
    threshold = gc.get_threshold()
    gc.set_threshold(1, 5, 5)
    try:
        begin = time.monotonic()
        happened.clear()
        while (lasted := time.monotonic() - begin) < seconds or not all(
            happened[kind] for kind in KINDS
        ):
            if lasted > seconds + PATIENCE:
                failures.append("not everything has happened")
                break
            pause(0.05)
    finally:
        going.clear()
        gc.set_threshold(*threshold)
    with green.Timeout(2 * PATIENCE):
        for task in tasks:
            green.wait(task)


def figures() -> dict[str, int]:
    """Return how many there are of what may be left."""
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "entries": len(epoll.entries),
        "sets": len(epoll._sets),
        "waiting": psycogreen.status().waiting,
    }


def settle(before: dict[str, int]) -> list[str]:
    """Wait until no more is left than *before*; return what is left nevertheless."""
    deadline = time.monotonic() + PATIENCE
    while True:
        # At once frees nothing if a destructor waits: a collection is under way then.
        gc.collect()
        while spare:
            spare.pop().close()
        now = figures()
        left = [what for what in now if now[what] > before[what]]
        if not left or time.monotonic() > deadline:
            return [f"{now[what]} {what} instead of {before[what]}" for what in left]
        pause(0.05)


def main() -> None:
    """Let the storm go on for as long as is asked for, and say what has happened."""
    prepare()
    nothing = {"descriptors": 1000, "entries": 0, "sets": 1, "waiting": 0}
    storm(0.5)  # what is made once, is made now
    settle(nothing)
    before = figures()
    storm(float(sys.argv[2]))
    failures.extend(settle(before))
    print(dict(happened))
    for each in failures:
        print(each)
    sys.stdout.flush()
    os._exit(1 if failures else 0)


main()
