"""psycogreen's metrics for Prometheus, with ``prometheus_client``.

    from psycogreen.integrations import metrics

    metrics.register()

Call it once in each worker process: where the application is imported, or, with
gunicorn's ``--preload``, in ``post_worker_init``.
"""

from __future__ import annotations

import _thread
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from psycogreen import Status, pool, status

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

    from psycogreen.pool import PoolStatus

__all__ = ["register"]

logger = logging.getLogger("psycogreen")


@dataclass(frozen=True)
class _Figure:
    name: str
    help: str
    of: Callable[[Status], float]


_COUNTERS = [
    _Figure(
        "psycogreen_waits",
        "Waits for PostgreSQL that have ended: queries, commits, connection attempts.",
        lambda status: status.waits,
    ),
    _Figure(
        "psycogreen_timed_out",
        "Waits that took longer than their limit.",
        lambda status: status.timed_out,
    ),
    _Figure(
        "psycogreen_cancelled",
        "Cancel requests that the server has accepted.",
        lambda status: status.cancelled,
    ),
]

_WAITING = _Figure(
    "psycogreen_waiting",
    "Waits for PostgreSQL under way.",
    lambda status: status.waiting,
)
_LONGEST_WAIT = _Figure(
    "psycogreen_longest_wait_seconds",
    "Age of the oldest wait under way.",
    lambda status: status.longest_wait,
)


# Either variable turns on the multi-process mode; the second name is deprecated.
_MULTIPROCESS = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")


@dataclass(frozen=True)
class _PoolFigure:
    """A figure of the pools of one name, which is its label."""

    name: str
    help: str
    of: Callable[[PoolStatus], float]
    mode: Literal["livesum", "livemax"]

    def of_all(self, pools: list[PoolStatus]) -> float:
        """Return the figure of several pools together, as of several processes."""
        figures = map(self.of, pools)
        return max(figures) if self.mode == "livemax" else sum(figures)


_POOL_GAUGES = [
    _PoolFigure(
        "psycogreen_pool_size",
        "Connections of the pool, including those being opened or closed.",
        lambda pool: pool.size,
        "livesum",
    ),
    _PoolFigure(
        "psycogreen_pool_in_use",
        "Connections of the pool that are not idle.",
        lambda pool: pool.in_use,
        "livesum",
    ),
    _PoolFigure(
        "psycogreen_pool_waiting",
        "Requests that wait for a connection of the pool.",
        lambda pool: pool.waiting,
        "livesum",
    ),
    _PoolFigure(
        "psycogreen_pool_longest_wait_seconds",
        "Age of the oldest request that waits for a connection of the pool.",
        lambda pool: pool.longest_wait,
        "livemax",
    ),
]
_POOL_TIMED_OUT = (
    "psycogreen_pool_timed_out",
    "Waits for a connection of the pool that timed out.",
)


_writing_pid: int | None = None


def register(registry: CollectorRegistry = REGISTRY, *, interval: float = 1.0) -> None:
    """Add psycogreen's figures to *registry*.

    In ``prometheus_client``'s multi-process mode, which the environment variable
    ``PROMETHEUS_MULTIPROC_DIR`` turns on, any worker answers a scrape for all workers.
    So each worker writes its figures to a file: a thread does so every *interval* seconds
    (a greenlet, if threads are monkey-patched). *registry* is not used in this mode, and
    a forked process must call this again. If writing fails, the log says so once, and the
    thread tries again.

    Raise `ValueError` if the figures are already in *registry*, or already written in
    this process, and `OSError` if they cannot be written.
    """
    if any(name in os.environ for name in _MULTIPROCESS):
        _start_writing(interval)
    else:
        registry.register(_Collector())


def _start_writing(interval: float) -> None:
    global _writing_pid
    if _writing_pid == os.getpid():
        msg = "psycogreen's figures are written in this process already"
        raise ValueError(msg)
    writer = _Writer(interval)
    # Not a threading.Thread: after a fork, threading has dropped the thread, but as a
    # greenlet it still runs in the child.
    _thread.start_new_thread(writer.run, ())
    _writing_pid = os.getpid()


class _Collector:
    """Reads the figures of this process when the registry collects them."""

    def describe(self) -> Iterator[Metric]:
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        now = status()
        for figure in _COUNTERS:
            yield CounterMetricFamily(figure.name, figure.help, figure.of(now))
        for figure in _WAITING, _LONGEST_WAIT:
            yield GaugeMetricFamily(figure.name, figure.help, figure.of(now))
        yield from self._collect_pools()

    def _collect_pools(self) -> Iterator[Metric]:
        found = _pools_by_name()
        for figure in _POOL_GAUGES:
            gauge = GaugeMetricFamily(figure.name, figure.help, labels=["pool"])
            for name, pools in found.items():
                gauge.add_metric([name], figure.of_all(pools))
            yield gauge
        counter = CounterMetricFamily(*_POOL_TIMED_OUT, labels=["pool"])
        for name, pools in found.items():
            counter.add_metric([name], _timed_out(pools))
        yield counter


class _Writer:
    """Writes the figures of this process to the files of the multi-process mode."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._pid = os.getpid()
        self._failing = False
        self._last = {figure.name: 0.0 for figure in _COUNTERS}
        # No registry: the registry that answers reads the files of all processes.
        self._counters = {
            figure.name: Counter(figure.name, figure.help, registry=None)
            for figure in _COUNTERS
        }
        self._waiting = _gauge(_WAITING, "livesum")
        self._longest_wait = _gauge(_LONGEST_WAIT, "livemax")
        self._pools = _PoolWriter()

    def run(self) -> None:
        global _writing_pid
        try:
            # A greenlet also runs in a forked child, whose figures start at zero.
            while os.getpid() == self._pid:
                self._write_or_log()
                time.sleep(self._interval)
        finally:
            # A greenlet may be killed. After that, register() may start a new one.
            if _writing_pid == self._pid:
                _writing_pid = None

    def _write_or_log(self) -> None:
        try:
            self.write(status())
            self._pools.write(_pools_by_name())
        except Exception:
            if not self._failing:
                logger.exception("psycogreen: cannot write the figures")
            self._failing = True
        else:
            self._failing = False

    def write(self, now: Status) -> None:
        for figure in _COUNTERS:
            value = figure.of(now)
            self._counters[figure.name].inc(value - self._last[figure.name])
            self._last[figure.name] = value
        self._waiting.set(_WAITING.of(now))
        self._longest_wait.set(_LONGEST_WAIT.of(now))


class _PoolWriter:
    """Writes the figures of this process's pools."""

    def __init__(self) -> None:
        self._gauges = [
            (
                figure,
                Gauge(
                    figure.name,
                    figure.help,
                    ["pool"],
                    registry=None,
                    multiprocess_mode=figure.mode,
                ),
            )
            for figure in _POOL_GAUGES
        ]
        self._timed_out = Counter(*_POOL_TIMED_OUT, ["pool"], registry=None)
        self._last: dict[str, int] = {}

    def write(self, found: dict[str, list[PoolStatus]]) -> None:
        for name in self._last.keys() - found:
            for _, gauge in self._gauges:
                gauge.labels(name).set(0)  # it was closed
            self._last[name] = 0
        for name, pools in found.items():
            for figure, gauge in self._gauges:
                gauge.labels(name).set(figure.of_all(pools))
            # A smaller number means that a pool of this name was closed.
            timed_out = _timed_out(pools)
            more = timed_out - min(self._last.get(name, 0), timed_out)
            self._timed_out.labels(name).inc(more)
            self._last[name] = timed_out


def _pools_by_name() -> dict[str, list[PoolStatus]]:
    found: dict[str, list[PoolStatus]] = {}
    for each in pool.status():
        found.setdefault(each.name, []).append(each)
    return found


def _timed_out(pools: list[PoolStatus]) -> int:
    return sum(each.timed_out for each in pools)


def _gauge(figure: _Figure, mode: Literal["livesum", "livemax"]) -> Gauge:
    return Gauge(figure.name, figure.help, registry=None, multiprocess_mode=mode)
