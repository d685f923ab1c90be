"""One interface to gevent and eventlet, for running tasks in their loops."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from typing import Any

from psycogreen._check.ticker import Ticker
from psycogreen._requirements import require
from psycogreen._wait import native


class Loop(ABC):
    """A framework's event loop in this thread, whether it runs already or not."""

    name: str
    """The framework's name."""

    modules: tuple[str, ...]
    """The modules that must be monkey-patched so that they do not block the loop."""

    patch_call: str
    """The call that monkey-patches these modules, for people."""

    def is_here(self) -> bool:
        """Return whether this thread has a loop, or is the main thread."""
        return self._has_hub() or native.is_main_thread()

    @abstractmethod
    def _has_hub(self) -> bool: ...

    @abstractmethod
    def is_patched(self, module: str) -> bool:
        """Return whether *module* is monkey-patched."""

    @abstractmethod
    def monkey_patch(self) -> None:
        """Monkey-patch the standard library, as an application does."""

    @abstractmethod
    def sleep(self, seconds: float) -> None:
        """Let others run for *seconds*."""

    @abstractmethod
    def timeout(self, seconds: float) -> Any:  # noqa: ANN401
        """Return a context manager that leaves its block after *seconds*, silently."""

    @abstractmethod
    def spawn(self, function: Callable[[], object]) -> Any:  # noqa: ANN401
        """Run *function* as a task that an error ends silently; return the task."""

    @abstractmethod
    def join(self, task: Any) -> None:  # noqa: ANN401
        """Wait for the end of *task*."""

    def resolver_blocks(self) -> bool:
        """Return whether the framework's own resolver blocks the loop."""
        return False

    def run_all(self, functions: Iterable[Callable[[], object]]) -> None:
        """Call all *functions* concurrently; on an error, kill the others and raise it."""
        failed: list[Exception] = []
        tasks = [self.spawn(partial(_run, function, failed)) for function in functions]
        try:
            for task in tasks:
                self.join(task)
                if failed:
                    raise failed[0]
        finally:
            for task in tasks:
                task.kill()
            # An error refers to the frames it went through, and so to this list.
            failed.clear()

    @contextmanager
    def ticking(self) -> Iterator[Ticker]:
        """Run a ticker during the block."""
        ticker = Ticker(self.sleep)
        task = self.spawn(ticker.run)
        self.sleep(0)
        try:
            yield ticker
        finally:
            task.kill()


class GeventLoop(Loop):
    """The loop of gevent."""

    name = "gevent"
    modules = ("socket", "threading", "time", "select")
    patch_call = "gevent.monkey.patch_all()"

    def __init__(self) -> None:
        """Import gevent, and make no hub yet."""
        self._gevent = import_module("gevent")
        self._monkey = import_module("gevent.monkey")

    def _has_hub(self) -> bool:
        from gevent._hub_local import get_hub_if_exists

        return get_hub_if_exists() is not None

    def is_patched(self, module: str) -> bool:
        return bool(self._monkey.is_module_patched(module))

    def monkey_patch(self) -> None:
        self._monkey.patch_all()

    def sleep(self, seconds: float) -> None:
        self._gevent.sleep(seconds)

    def timeout(self, seconds: float) -> Any:  # noqa: ANN401
        return self._gevent.Timeout(seconds, False)

    def spawn(self, function: Callable[[], object]) -> Any:  # noqa: ANN401
        return self._gevent.spawn(_silenced, function)

    def join(self, task: Any) -> None:  # noqa: ANN401
        task.join()

    def resolver_blocks(self) -> bool:
        from gevent.resolver.blocking import Resolver

        return isinstance(self._gevent.get_hub().resolver, Resolver)


class EventletLoop(Loop):
    """The loop of eventlet."""

    name = "eventlet"
    modules = ("socket", "thread", "time", "select")
    patch_call = "eventlet.monkey_patch()"

    def __init__(self) -> None:
        """Import eventlet, and make no hub yet."""
        self._eventlet = import_module("eventlet")
        self._hubs = import_module("eventlet.hubs")

    def _has_hub(self) -> bool:
        return getattr(self._hubs._threadlocal, "hub", None) is not None

    def is_patched(self, module: str) -> bool:
        return bool(self._eventlet.patcher.is_monkey_patched(module))

    def monkey_patch(self) -> None:
        self._eventlet.monkey_patch()

    def sleep(self, seconds: float) -> None:
        self._eventlet.sleep(seconds)

    def timeout(self, seconds: float) -> Any:  # noqa: ANN401
        return self._eventlet.Timeout(seconds, False)

    def spawn(self, function: Callable[[], object]) -> Any:  # noqa: ANN401
        return self._eventlet.spawn(_silenced, function)

    def join(self, task: Any) -> None:  # noqa: ANN401
        task.wait()


LOOPS: dict[str, type[Loop]] = {"gevent": GeventLoop, "eventlet": EventletLoop}


def loop(name: str) -> Loop:
    """Return the loop of the framework *name*.

    Raise `ValueError` for an unknown name, `ImportError` if the framework is missing.
    """
    if name not in LOOPS:
        msg = f"cannot watch the loop of {name!r}, only of {' or '.join(LOOPS)}"
        raise ValueError(msg)
    require(name)
    return LOOPS[name]()


def _run(function: Callable[[], object], failed: list[Exception]) -> None:
    """Call *function*; append the exception that it raises to *failed*."""
    try:
        function()
    except Exception as ex:  # noqa: BLE001
        failed.append(ex)


def _silenced(function: Callable[[], object]) -> None:
    """Call *function*; the framework would print the traceback of an error."""
    with suppress(Exception):
        function()
