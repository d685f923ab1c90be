"""The faults: each a script that the process under test goes through.

A script returns at how many points it has injected its fault. It finds these
points by itself: it does the operation once without a fault, and counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import psycopg2
from faults import operations
from faults.bench import Bench, Trial
from faults.chaos import chaos
from faults.operations import Operation
from faults.switches import SwitchPoints
from greenlet import GreenletExit
from psycopg2.extensions import parse_dsn

Script = Callable[[Bench], int]
Thrown = Callable[[Bench], BaseException]

CHAOS = "chaos: 100 greenlets"

REFUSED = "refused"

DEADLINE = 1.5
"""Seconds after which the application gives up, with the framework's Timeout."""

LASTING = 30.0
"""Seconds that an operation lasts that is to be ended sooner."""


def at_every_boundary(bench: Bench, operation: Operation, action: str) -> int:
    """Let the network do *action* at every message boundary of *operation*."""
    count = _count_messages(bench, operation)
    return _at(bench, operation, action, range(count + 1), count)


def at_each_quarter(bench: Bench, operation: Operation, action: str) -> int:
    """Let the network do *action* after each quarter of the messages."""
    count = _count_messages(bench, operation)
    quarters = [count * part // 4 for part in range(1, 4)]
    return _at(bench, operation, action, quarters, count)


def _without_limit(operation: Operation) -> Operation:
    """Return *operation* with a time to connect that no busy machine exceeds."""
    if "connect_timeout" not in operation.options:
        return operation
    return replace(operation, options={**operation.options, "connect_timeout": 60})


def _count_messages(bench: Bench, operation: Operation) -> int:
    """Return how many messages *operation* sends and receives."""
    operation = _without_limit(operation)
    port = bench.lab.proxy()
    counts = []

    def count(trial: Trial) -> None:
        trial.prepare()
        bench.lab.arm(port, None)
        trial.perform()
        counts.append(bench.lab.messages(port))

    bench.try_out(count, operation, port=port)
    return int(counts[0])


def _at(
    bench: Bench,
    operation: Operation,
    action: str,
    boundaries: Sequence[int],
    count: int,
) -> int:
    """Let the network do *action* at *boundaries* between the *count* messages."""
    delayed = action == "delay"
    if delayed:
        operation = _without_limit(operation)

    def meet(port: int, boundary: int, trial: Trial) -> None:
        trial.prepare()
        bench.lab.arm(port, action, boundary)
        # Connecting has its connect_timeout. What is only slow may take its time.
        limited = operation.run and not delayed
        with trial.deadline(DEADLINE) if limited else nullcontext():
            trial.perform()

    with bench.judged():
        trials = []
        for boundary in boundaries:
            port = bench.lab.proxy()
            work = partial(meet, port, boundary)
            trials.append(bench.start(work, operation, port=port))
        bench.finish(*trials)
        if delayed:
            bench.violations["fails"] += sum(bool(trial.error) for trial in trials)
        else:
            # What comes after the last message may go unnoticed. In a stream the
            # messages come ahead of the one that reads them: only the first is the last
            # for sure.
            noticed = 1 if operation.streams else count
            unfinished = zip(trials, boundaries, strict=True)
            _expect_error(bench, *[trial for trial, at in unfinished if at < noticed])
    return len(boundaries)


def at_every_switch(
    bench: Bench, operation: Operation, thrown: Sequence[Thrown]
) -> int:
    """Throw an exception at every point at which *operation* lets others run.

    Of several exceptions, the first is thrown there, the others at the points after.
    """
    counts = []

    def count(trial: Trial) -> None:
        trial.prepare()
        with _switch_points(bench, trial) as points:
            trial.perform()
        counts.append(points.count)

    bench.try_out(count, operation)
    interrupt = partial(_interrupt, bench, thrown)
    _interrupt_at(bench, operation, interrupt, counts[0])
    # A cancel request that arrives before the server has read the statement has no effect.
    # On a loaded machine that happens: try again, but let the server read it first.
    if bench.violations.pop("backend left active", 0):
        bench.lab.terminate_all()
        interrupt = partial(_interrupt, bench, thrown, hold=bench.await_active)
        _interrupt_at(bench, operation, interrupt, counts[0])
    return int(counts[0])


def _interrupt_at(
    bench: Bench, operation: Operation, interrupt: Callable[..., None], points: int
) -> None:
    """Interrupt at each of so many points, in a trial of its own."""
    with bench.judged():
        for point in range(1, points + 1):
            work = partial(interrupt, point)
            trial = bench.start(work, operation, seconds=LASTING)
            bench.finish(trial)
            # If the server's answers come together this once, a later point is missing:
            # then there is the deadline alone.
            if point == 1 or len(trial.interruptions) > 1:
                _expect_error(bench, trial)


def kill(bench: Bench) -> BaseException:
    """Return what a kill throws."""
    return GreenletExit()


def timeout(bench: Bench) -> BaseException:
    """Return what a Timeout throws."""
    return bench.green.Timeout()


def _interrupt(
    bench: Bench,
    thrown: Sequence[Thrown],
    point: int,
    trial: Trial,
    hold: Callable[[], object] = int,
) -> None:
    """Throw at a point and the ones after it, each time after a call of *hold*."""

    def throw(interruption: BaseException) -> None:
        trial.interruptions.append(interruption)
        bench.green.call_in_hub(lambda: (hold(), trial.task.throw(interruption)))

    actions = {point + n: partial(throw, make(bench)) for n, make in enumerate(thrown)}
    trial.prepare()
    with trial.deadline(DEADLINE), _switch_points(bench, trial, actions):
        trial.perform()


@contextmanager
def _switch_points(
    bench: Bench, trial: Trial, actions: Mapping[int, Callable[[], object]] = {}
) -> Iterator[SwitchPoints]:
    """Act at the switch points of a block. The server does nothing before the first one.

    Else all its answers may be there before anything waits for them.
    """
    if not trial.conn:
        with SwitchPoints(actions) as points:
            yield points
        return
    backend = trial.conn.info.backend_pid

    def begin() -> None:
        bench.lab.resume(backend)
        actions.get(1, int)()

    bench.lab.suspend(backend)
    try:
        with SwitchPoints({**actions, 1: begin}) as points:
            yield points
    finally:
        bench.lab.resume(backend)


def terminated_while_idle(bench: Bench) -> int:
    """Terminate a backend that nobody is waiting for."""

    def find_out(trial: Trial) -> None:
        trial.prepare()
        bench.lab.terminate(trial.conn.info.backend_pid)
        trial.perform()

    bench.try_out(Trial.perform, operations.CONNECT)
    with bench.judged():
        trial = bench.start(find_out, operations.QUERY)
        bench.finish(trial)
        _expect_error(bench, trial)
    return 1


def terminated_during(bench: Bench, operation: Operation) -> int:
    """Terminate a backend that is being waited for."""

    def perform(trial: Trial) -> None:
        trial.prepare()
        trial.perform()

    bench.try_out(perform, operation)
    with bench.judged():
        trial = bench.start(perform, operation, seconds=LASTING)
        bench.await_(bench.lab.active)
        bench.lab.terminate(trial.conn.info.backend_pid)
        bench.finish(trial)
        _expect_error(bench, trial)
    return 1


def terminated_while_streaming(bench: Bench) -> int:
    """Terminate a backend of whose result half has been read."""
    operation = operations.LARGE_RESULT
    half = _count_messages(bench, operation) // 2
    port = bench.lab.proxy()

    def stream(trial: Trial) -> None:
        trial.prepare()
        bench.lab.arm(port, "stop", half)
        trial.perform()

    with bench.judged():
        trial = bench.start(stream, operation, port=port)
        bench.await_(lambda: bench.lab.messages(port) >= half)
        bench.lab.terminate(trial.conn.info.backend_pid)
        bench.lab.arm(port, None)
        bench.finish(trial)
        _expect_error(bench, trial)
    return 1


def server_stopped(bench: Bench) -> int:
    """Stop a server in immediate mode with 200 queries in flight, and start it."""
    operation = operations.QUERY
    where = dict(parse_dsn(bench.lab.victim()))
    in_flight = []

    def query(trial: Trial) -> None:
        trial.prepare()
        in_flight.append(trial)
        trial.perform()

    bench.try_out(query, operation, **where)
    in_flight.clear()
    with bench.judged():
        trials = [
            bench.start(query, operation, seconds=LASTING, **where) for _ in range(200)
        ]
        bench.await_(lambda: len(in_flight) == len(trials))
        bench.lab.stop_victim()
        bench.finish(*trials)
        _expect_error(bench, *trials)
        bench.lab.start_victim()
        if not bench.await_(lambda: _answers(bench, where)):
            bench.violations["cannot connect again"] += 1
    return len(trials)


def _answers(bench: Bench, where: dict[str, str]) -> bool:
    try:
        bench.connect(**where).close()
    except psycopg2.OperationalError:
        return False
    return True


def _expect_error(bench: Bench, *trials: Trial) -> None:
    """See that the fault has really occurred."""
    bench.violations["no error"] += sum(not trial.error for trial in trials)


def _scripts() -> Iterator[tuple[str, Callable[..., int], dict[str, object]]]:
    query, commit = operations.QUERY, operations.COMMIT
    yield "backend terminated: idle", terminated_while_idle, {}
    copies = operations.COPY_OUT, operations.COPY_IN
    for operation in query, commit, *copies:
        name = f"backend terminated: {operation.name}"
        yield name, terminated_during, {"operation": operation}
    yield "backend terminated: 50 MB result", terminated_while_streaming, {}
    yield "server stopped: 200 queries", server_stopped, {}
    for action in "reset", "silence", "half-close", "cut", "delay":
        for operation in operations.SHORT:
            name = f"{action}: {operation.name}"
            options = {"operation": operation, "action": action}
            yield name, at_every_boundary, options
    options = {"operation": operations.LARGE_PARAMETER, "action": "stop"}
    yield "reading stops: 20 MB parameter", at_every_boundary, options
    options = {"operation": operations.LARGE_RESULT, "action": "stop"}
    yield "reading stops: 50 MB result", at_each_quarter, options
    for thrown in [kill], [timeout], [timeout, kill]:
        for operation in operations.INTERRUPTIBLE:
            name = f"{' and '.join(f.__name__ for f in thrown)}: {operation.name}"
            yield name, at_every_switch, {"operation": operation, "thrown": thrown}
    yield CHAOS, chaos, {}


SCRIPTS: dict[str, Script] = {
    name: partial(script, **options) for name, script, options in _scripts()
}
"""All of them, by the name of their fault."""
