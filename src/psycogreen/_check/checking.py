"""Check whether psycopg2 waits cooperatively in this process, and explain why not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

from psycogreen import _install
from psycogreen._check.findings import Finding, Seen, Worker, findings
from psycogreen._check.measuring import Figures, measure
from psycogreen._check.tasks import loop
from psycogreen._install import Status
from psycogreen._interface.dsn import for_libpq, shown


@dataclass(frozen=True, kw_only=True)
class CheckReport(Figures):
    """The result of `check`."""

    dsn: str
    """The connection string, without passwords."""

    status: Status
    """What was installed, and what was monkey-patched."""

    queries: int
    """How many queries ran at once."""

    seconds: float
    """How many seconds each of them waited on the server."""

    findings: tuple[Finding, ...]
    """The problems and remarks; those that block the loop come first."""

    worker: str | None = None
    """The server's worker that ``python -m psycogreen check -- ...`` started; ``None``
    if the function was called."""

    @property
    def cooperative(self) -> bool:
        """Whether nothing was found that blocks the loop."""
        return not self.problems

    @property
    def problems(self) -> tuple[str, ...]:
        """The findings that block the loop: a sentence each, with the remedy."""
        return tuple(str(finding) for finding in self.findings if finding.blocks)

    @property
    def remarks(self) -> tuple[str, ...]:
        """The findings that do not block the loop: a sentence each, with the remedy."""
        return tuple(str(finding) for finding in self.findings if not finding.blocks)


def check(
    dsn: str = "",
    *,
    framework: str | None = None,
    queries: int = 10,
    seconds: float = 0.5,
    say: Callable[[str], object] = lambda step: None,
) -> CheckReport:
    """Test with real queries whether psycopg2 waits cooperatively in this process.

    It installs nothing and changes nothing: call it where the application makes its
    queries, for example in a request. It opens *queries* connections with *dsn*
    (libpq's keywords, a URL, or ``""`` for libpq's defaults), lets each wait *seconds*
    in PostgreSQL, all at the same time, and measures how long the loop stands still.
    Then it tries to connect to a server that does not answer. In a green process the
    check takes *seconds* and a little more than one second; in a blocking one it takes
    *queries* times *seconds*. A database that does not answer fails after
    ``connect_timeout``, or after 10 seconds if that is not set.

    *framework* is ``"gevent"`` or ``"eventlet"``: the loop to watch. ``None`` stands
    for the framework of the wait callback, or else of the monkey patch. *say* is
    called with a description of each step.

    Raise `psycopg2.Error` if a connection or a query fails; `ValueError` if an argument is
    invalid, and under uWSGI's engines greenlet and uGreen, which have no loop to watch; and
    `ImportError` if the framework is missing.
    """
    if queries < 1:
        msg = f"queries={queries!r}: it must be 1 or more"
        raise ValueError(msg)
    if not 0 < seconds < math.inf:
        msg = f"seconds={seconds!r}: it must be a number of seconds above 0"
        raise ValueError(msg)
    name = framework or _framework(_install.status())
    return examine(dsn, name, queries=queries, seconds=seconds, say=say)


def examine(
    dsn: str,
    framework: str | None,
    *,
    queries: int,
    seconds: float,
    say: Callable[[str], object],
    worker: Worker | None = None,
) -> CheckReport:
    """Run the check of `check`, in a server's *worker* if that is not ``None``.

    If *framework* is ``None``, there is no loop to watch.
    """
    dsn = for_libpq(dsn)
    status = _install.status()
    watched = loop(framework) if framework else None
    figures = Figures()
    if watched and watched.is_here():
        figures = measure(watched, dsn, queries, seconds, say)
    seen = Seen(status, watched, figures, seconds, worker)
    return CheckReport(
        dsn=shown(dsn),
        status=status,
        queries=queries,
        seconds=seconds,
        **asdict(figures),
        findings=tuple(findings(seen)),
        worker=f"{worker}, pid {status.pid}" if worker else None,
    )


def _framework(status: Status) -> str | None:
    """Return the framework whose loop to watch: the callback's, else the patch's."""
    return status.framework or next(iter(_install.monkey_patched()), None)
