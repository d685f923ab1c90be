"""Whether psycopg2 really lets others run in this process, and if not, why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from psycogreen import _install
from psycogreen._check.measuring import Figures, measure, stands_still
from psycogreen._check.tasks import Loop, loop
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

    problems: tuple[str, ...]
    """What stops the loop, each with its remedy."""

    remarks: tuple[str, ...]
    """What else is not as it should be, though the loop goes on."""

    @property
    def cooperative(self) -> bool:
        """Whether nothing was found that stops the loop."""
        return not self.problems


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
    dsn = for_libpq(dsn)
    status = _install.status()
    name = framework or _framework(status)
    watched = loop(name) if name else None
    figures = Figures()
    if watched and watched.is_here():
        figures = measure(watched, dsn, queries, seconds, say)
    return CheckReport(
        dsn=shown(dsn),
        status=status,
        queries=queries,
        seconds=seconds,
        **asdict(figures),
        problems=tuple(_problems(status, watched, figures, seconds)),
        remarks=tuple(_remarks(status, figures, seconds)),
    )


def _framework(status: Status) -> str | None:
    """Return whose loop to watch: who waits, or else who has patched."""
    return status.framework or next(iter(_install.monkey_patched()), None)


def _problems(
    status: Status, watched: Loop | None, figures: Figures, seconds: float
) -> Iterator[str]:
    if status.callback is None:
        yield (
            "wait callback missing: psycopg2 stops the loop with every query; call "
            "psycogreen.patch_psycopg() in each worker process"
        )
    if watched is None:
        yield (
            "monkey patch missing: neither gevent nor eventlet has patched this "
            "process, in which every wait blocks its thread"
        )
        return
    yield from _missing_patch(watched)
    if not watched.is_here():
        yield (
            f"blocking thread: this is a native thread without {watched.name}'s loop, "
            "which psycopg2 blocks; make queries in greenlets of the loop's thread"
        )
    if status.callback and stands_still(figures.longest_stall or 0, seconds):
        yield (
            f"wait callback blocks: the loop stood still for "
            f"{figures.longest_stall:.2f} s while {status.callback} waited"
        )
    yield from _blocking_resolver(status, figures.resolved_by)


def _missing_patch(watched: Loop) -> Iterator[str]:
    missing = [name for name in watched.modules if not watched.is_patched(name)]
    if missing:
        others = [name for name in _install.monkey_patched() if name != watched.name]
        by_others = f"; {others[0]} has patched this process instead" if others else ""
        yield (
            f"monkey patch missing: {watched.name} has not patched "
            f"{', '.join(missing)}{by_others}; call {watched.patch_call} before "
            "all other imports"
        )


def _blocking_resolver(status: Status, resolved_by: str | None) -> Iterator[str]:
    if resolved_by == "libpq":
        yield (
            "name resolution blocks: libpq itself looks up the host, which stops the "
            f"loop; {_remedy_for_libpq(status)}"
        )
    elif resolved_by == "gevent":
        yield (
            "name resolution blocks: gevent's resolver is 'block', which stops the "
            "loop; unset GEVENT_RESOLVER"
        )


def _remedy_for_libpq(status: Status) -> str:
    if status.resolve_hosts:
        return "name the host in the connection string, not in a service file"
    if (status.callback or "").startswith("psycogreen."):
        return "leave resolve_hosts=True, patch_psycopg()'s default"
    return "psycogreen.patch_psycopg() looks names up off the loop"


def _remarks(status: Status, figures: Figures, seconds: float) -> Iterator[str]:
    # Other stalls of connecting are among the problems already.
    off_loop = figures.resolved_by in (None, "psycogreen")
    stall = figures.connect_stall or 0
    if status.callback and off_loop and stands_still(stall, seconds):
        yield (
            f"connecting blocks: the loop stood still for {stall:.2f} s while "
            "connections were opened, in what libpq does by itself (Kerberos, TLS, "
            "passwords); keep connections open, in a pool"
        )
    if figures.connect_timeout_honoured is False:
        yield (
            "connect_timeout is not honoured: a server that does not answer keeps a "
            f"greenlet for ever, with {status.callback}"
        )
