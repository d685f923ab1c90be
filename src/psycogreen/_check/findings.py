"""The findings of a check: a cause, a remedy, and a stable code for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from psycogreen import _install
from psycogreen._check.measuring import Figures, stands_still
from psycogreen._check.tasks import Loop
from psycogreen._install import Status
from psycogreen._servers import Server


@dataclass(frozen=True)
class Finding:
    """A problem, or a remark about something that does not block the loop."""

    code: str
    """A stable identifier, such as ``"wait-callback-missing"``. See :ref:`findings`."""

    cause: str
    """What was found, for people. The text may change."""

    remedy: str
    """What to do about it, for people. The text may change."""

    blocks: bool = True
    """Whether it blocks the loop. If not, it is only a remark."""

    @property
    def title(self) -> str:
        """The code, for people."""
        return self.code.replace("-", " ")

    def __str__(self) -> str:
        """Return it as one sentence."""
        return f"{self.title}: {self.cause}; {self.remedy}"


@dataclass(frozen=True)
class Worker:
    """A server's worker that a check runs in."""

    server: Server

    name: str
    """The worker's class or engine."""

    is_green: bool
    """Whether it runs a framework's loop, with its requests or tasks in it."""

    def __str__(self) -> str:
        """Return the worker's name, for people."""
        return f"{self.server.name}'s {self.name}"


@dataclass(frozen=True)
class Seen:
    """The facts from which the findings follow."""

    status: Status
    watched: Loop | None
    figures: Figures
    seconds: float
    worker: Worker | None


def findings(seen: Seen) -> Iterator[Finding]:
    """Return the findings, those that block the loop first."""
    if seen.worker and not seen.worker.is_green:
        yield _worker_not_green(seen.worker)
        return
    if seen.status.callback is None:
        yield _callback_missing(seen.worker)
    if seen.worker and seen.watched is None:
        return  # no query was run: uWSGI's own engines run only requests
    if seen.watched is None:
        yield Finding(
            "monkey-patch-missing",
            "neither gevent nor eventlet has patched this process, so every wait "
            "blocks its thread",
            "call gevent.monkey.patch_all() before all other imports",
        )
        return
    yield from _missing_patch(seen.watched, seen.worker)
    if not seen.watched.is_here():
        yield Finding(
            "blocking-thread",
            f"this is a native thread without {seen.watched.name}'s loop, which "
            "psycopg2 blocks",
            "make queries in greenlets of the loop's thread",
        )
    yield from _stalls(seen)
    yield from _blocking_resolver(seen.status, seen.figures.resolved_by)
    yield from _remarks(seen)


def _worker_not_green(worker: Worker) -> Finding:
    return Finding(
        "worker-not-green",
        f"{worker} runs neither gevent nor eventlet, so psycopg2 blocks it",
        worker.server.how_to_be_green,
    )


def _callback_missing(worker: Worker | None) -> Finding:
    return Finding(
        "wait-callback-missing",
        "psycopg2 stops the loop with every query",
        worker.server.how_to_install
        if worker
        else "call psycogreen.patch_psycopg() in each worker process",
    )


def _missing_patch(watched: Loop, worker: Worker | None) -> Iterator[Finding]:
    missing = [name for name in watched.modules if not watched.is_patched(name)]
    if missing:
        others = [name for name in _install.monkey_patched() if name != watched.name]
        by_others = f"; {others[0]} has patched this process instead" if others else ""
        yield Finding(
            "monkey-patch-missing",
            f"{watched.name} has not patched {', '.join(missing)}{by_others}",
            f"start {worker.server.name} with {worker.server.monkey_patch}"
            if worker and worker.server.monkey_patch
            else f"call {watched.patch_call} before all other imports",
        )


def _stalls(seen: Seen) -> Iterator[Finding]:
    stall = seen.figures.longest_stall or 0
    if seen.status.callback and stands_still(stall, seen.seconds):
        yield Finding(
            "wait-callback-blocks",
            f"the loop stood still for {stall:.2f} s while {seen.status.callback} waited",
            "install psycogreen's: patch_psycopg(replace=True)",
        )


def _blocking_resolver(status: Status, resolved_by: str | None) -> Iterator[Finding]:
    if resolved_by == "libpq":
        yield Finding(
            "name-resolution-blocks",
            "libpq looks up the host name, which stops the loop",
            _remedy_for_libpq(status),
        )
    elif resolved_by == "gevent":
        yield Finding(
            "name-resolution-blocks",
            "gevent's resolver is 'block', which stops the loop",
            "unset GEVENT_RESOLVER",
        )


def _remedy_for_libpq(status: Status) -> str:
    if status.resolve_hosts:
        return "name the host in the connection string, not in a service file"
    if (status.callback or "").startswith("psycogreen."):
        return (
            "unset PSYCOGREEN_RESOLVE_HOSTS, and pass no resolve_hosts=False to "
            "patch_psycopg()"
        )
    return "call psycogreen.patch_psycopg(), which looks up host names off the loop"


def _remarks(seen: Seen) -> Iterator[Finding]:
    # The problems already cover every other cause of a stall.
    off_loop = seen.figures.resolved_by in (None, "psycogreen")
    stall = seen.figures.connect_stall or 0
    if seen.status.callback and off_loop and stands_still(stall, seen.seconds):
        yield Finding(
            "connecting-blocks",
            f"the loop stood still for {stall:.2f} s while connections were opened, for "
            "libpq's own work (Kerberos, TLS, passwords)",
            "keep connections open, in a pool",
            blocks=False,
        )
    if seen.figures.connect_timeout_honoured is False:
        yield Finding(
            "connect-timeout-ignored",
            f"{seen.status.callback} does not honour connect_timeout: a greenlet waits "
            "forever for a server that does not answer",
            "install psycogreen's wait callback",
            blocks=False,
        )
