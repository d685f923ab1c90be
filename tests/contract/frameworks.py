"""The contract suite's interface to gevent and eventlet."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

from ticker import Ticker

import psycogreen


class Framework:
    """The coroutine library that this process is monkey-patched by."""

    name: str
    module: ModuleType
    """psycogreen's module for it."""
    callback: Callable[..., None]
    Timeout: type[BaseException]
    sleep: Callable[[float], object]
    spawn: Callable[..., object]

    def wait(self, task: object) -> object:
        """Wait for the end of a spawned *task*; return or raise what it did."""
        raise NotImplementedError

    def kill(self, task: object, *ex: BaseException) -> None:
        """Kill a spawned *task*, wherever it is."""
        raise NotImplementedError

    def throw(self, task: object, ex: BaseException) -> None:
        """Throw *ex* into a spawned *task*, wherever it is."""
        self.kill(task, ex)

    def loop_name(self) -> str:
        """Return the name of the loop in use, as the framework has it."""
        raise NotImplementedError

    def has_hub(self) -> bool:
        """Return whether this thread has a hub."""
        raise NotImplementedError

    def new_hub(self) -> None:
        """Give this thread another hub."""
        raise NotImplementedError

    def in_thread_pool(
        self, function: Callable[..., object], *arguments: object
    ) -> object:
        """Return what *function* returns, called in the framework's thread pool."""
        raise NotImplementedError

    def call_in_hub(self, function: Callable[[], object]) -> None:
        """Let the hub's own greenlet call *function*, before it waits for anything."""
        raise NotImplementedError

    def hub_greenlet(self) -> object:
        """Return the greenlet that runs the loop."""
        raise NotImplementedError

    @contextmanager
    def ticking(self, at_least: int = 2) -> Iterator[Ticker]:
        """Assert that the loop goes on during the block: *at_least* so many ticks.

        There are few if the machine is busy. If the loop stands still there is none, or one
        at the end.
        """
        ticker = Ticker(self.sleep, 0.002)
        task = self.spawn(ticker.run)
        self.sleep(0)
        try:
            yield ticker
            assert ticker.ticks >= at_least, (
                f"{ticker.ticks} ticks: the loop stood still"
            )
        finally:
            self.kill(task)


class Gevent(Framework):
    """gevent."""

    name = "gevent"

    def __init__(self) -> None:
        """Import it."""
        import gevent

        import psycogreen.gevent

        self._gevent = gevent
        self.module = psycogreen.gevent
        self.callback = psycogreen.gevent.gevent_wait_callback
        self.Timeout = gevent.Timeout
        self.sleep = gevent.sleep
        self.spawn = gevent.spawn

    def wait(self, task: object) -> object:
        """Wait for *task*."""
        return task.get()

    def kill(self, task: object, *ex: BaseException) -> None:
        """Kill *task*."""
        task.kill(*ex)

    def has_hub(self) -> bool:
        """Look where gevent keeps it."""
        from gevent._hub_local import get_hub_if_exists

        return get_hub_if_exists() is not None

    def new_hub(self) -> None:
        """Destroy it: gevent makes another one when it needs one."""
        self._gevent.get_hub().destroy(destroy_loop=True)

    def in_thread_pool(
        self, function: Callable[..., object], *arguments: object
    ) -> object:
        """Call it in the hub's pool."""
        return self._gevent.get_hub().threadpool.apply(function, arguments)

    def call_in_hub(self, function: Callable[[], object]) -> None:
        """Let the loop call it."""
        self._gevent.get_hub().loop.run_callback(function)

    def hub_greenlet(self) -> object:
        """Return the hub, which is a greenlet."""
        return self._gevent.get_hub()

    def loop_name(self) -> str:
        """Return the module of the loop's class."""
        return type(self._gevent.get_hub().loop).__module__


class Eventlet(Framework):
    """eventlet."""

    name = "eventlet"

    def __init__(self) -> None:
        """Import it."""
        import eventlet
        from eventlet import hubs

        import psycogreen.eventlet

        self._hubs = hubs
        self.module = psycogreen.eventlet
        self.callback = psycogreen.eventlet.eventlet_wait_callback
        self.Timeout = eventlet.Timeout
        self.sleep = eventlet.sleep
        self.spawn = eventlet.spawn

    def wait(self, task: object) -> object:
        """Wait for *task*."""
        return task.wait()

    def kill(self, task: object, *ex: BaseException) -> None:
        """Kill *task*."""
        task.kill(*ex)

    def has_hub(self) -> bool:
        """Look where eventlet keeps it."""
        return getattr(self._hubs._threadlocal, "hub", None) is not None

    def new_hub(self) -> None:
        """Let eventlet make one."""
        self._hubs.use_hub()

    def in_thread_pool(
        self, function: Callable[..., object], *arguments: object
    ) -> object:
        """Call it in tpool."""
        from eventlet import tpool

        return tpool.execute(function, *arguments)

    def call_in_hub(self, function: Callable[[], object]) -> None:
        """Let a timer of the hub call it.

        One that is overdue and sorted in at once: if timers are being called now, another
        one would be called after the hub has polled.
        """
        hub = self._hubs.get_hub()
        hub.schedule_call_global(-1, function)
        hub.prepare_timers()

    def hub_greenlet(self) -> object:
        """Return the hub's."""
        return self._hubs.get_hub().greenlet

    def loop_name(self) -> str:
        """Return the module of the hub's class."""
        return type(self._hubs.get_hub()).__module__


def current() -> Framework:
    """Return the framework that run.py has patched this process with."""
    patched = psycogreen.status().framework or (
        "gevent" if "gevent.monkey" in sys.modules else "eventlet"
    )
    return FRAMEWORKS[patched]()


FRAMEWORKS: dict[str, type[Framework]] = {"gevent": Gevent, "eventlet": Eventlet}

DSN = os.environ.get("PSYCOGREEN_TEST_DSN", "")
