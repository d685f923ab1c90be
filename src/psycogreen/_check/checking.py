"""Whether psycopg2 really lets others run in this process, and if not, why."""

from __future__ import annotations

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
    """What `check` has found."""

    dsn: str
    """The connection string, without passwords."""

    status: Status
    """What was installed, and what was monkey-patched."""

    queries: int
    """How many queries ran at once."""

    seconds: float
    """How long each of them took on the server."""

    findings: tuple[Finding, ...]
    """What is not as it should be: first what stops the loop."""

    worker: str | None = None
    """The server's worker that ``python -m psycogreen check -- ...`` started; ``None``
    if the function was called."""

    @property
    def cooperative(self) -> bool:
        """Whether nothing was found that stops the loop."""
        return not self.problems

    @property
    def problems(self) -> tuple[str, ...]:
        """What stops the loop, each with its remedy, in one sentence."""
        return tuple(str(finding) for finding in self.findings if finding.blocks)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What else is not as it should be, though the loop goes on."""
        return tuple(str(finding) for finding in self.findings if not finding.blocks)


def check(
    dsn: str = "",
    *,
    framework: str | None = None,
    queries: int = 10,
    seconds: float = 0.5,
    say: Callable[[str], object] = lambda step: None,
) -> CheckReport:
    """Try out whether psycopg2 lets others run while it waits for PostgreSQL.

    It installs nothing, and takes this process and this thread as they are: call
    it where the application makes its queries, in a request for instance. It
    opens *queries* connections with *dsn* (libpq's words, a URL, or ``""`` for
    libpq's defaults), lets each wait *seconds* in PostgreSQL, all at once, and
    watches the loop meanwhile; then it tries to connect to a server that does not
    answer. That takes *seconds* and a little more than one in a green process,
    and *queries* times *seconds* in one that is not. A database that does not answer
    is given up after ``connect_timeout``, 10 seconds if nothing sets it.

    *framework* is ``"gevent"`` or ``"eventlet"``, whose loop to watch; ``None``
    finds it out. *say* is called with each step, in words.

    Raise `psycopg2.Error` if a connection or a query fails, `ValueError` for what
    is no connection string, and `ImportError` for a framework that is missing.
    """
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
