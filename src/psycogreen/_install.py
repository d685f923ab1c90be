"""Install, remove and report psycopg2's wait callback for this process.

psycopg2 has one wait callback for the whole process. This module always asks psycopg2
which one is installed and keeps no copy, which a fork or another
``set_wait_callback()`` would make wrong.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module

from psycopg2.extensions import get_wait_callback

from psycogreen._errors import PatchConflict
from psycogreen._interface import blocking, connecting, lookups, readback, replacing
from psycogreen._uwsgi.engine import engine
from psycogreen._wait import cancel, stats
from psycogreen._wait.native import SocketWait
from psycogreen._wait.stats import logger

FRAMEWORKS = ("gevent", "eventlet", "uwsgi")

# The frameworks by the module of their wait callback: psycogreen's own callbacks, and
# the one that eventlet.monkey_patch() installs.
_OWN = {f"psycogreen.{name}": name for name in FRAMEWORKS}
_BUILTIN = {"eventlet.support.psycopg2_patcher": "eventlet"}


@dataclass(frozen=True)
class Status:
    """How psycopg2 waits in this process, at the moment of asking."""

    framework: str | None
    """``"gevent"``, ``"eventlet"`` or ``"uwsgi"``; ``None`` if psycopg2 blocks, or
    waits with a callback that belongs to none of them."""

    engine: str | None
    """The async engine of this uWSGI: ``"gevent"``, ``"greenlet"`` or
    ``"ugreen"``; ``None`` if it has none of them, and in any other process."""

    callback: str | None
    """The dotted name of the wait callback, a foreign one too; ``None`` if
    psycopg2 blocks."""

    monkey_patched: bool
    """Whether the standard library's sockets are monkey-patched by the
    framework (by any, if *framework* is ``None``). ``False`` under ``"uwsgi"``."""

    pid: int
    """The id of this process."""

    resolve_hosts: bool
    """Whether host names are resolved without blocking the loop. Also ``False`` if this
    psycopg2 has no ``_connect`` to replace: then connecting blocks while libpq resolves
    the name."""

    cancel_interrupted: bool
    """Whether a query is cancelled on the server when its wait is interrupted."""

    compiled: bool
    """Whether the callback is the one in C. ``False`` if psycogreen was not compiled,
    if ``PSYCOGREEN_PURE=1`` is set, or if none of psycogreen's callbacks is installed."""

    waiting: int
    """How many waits are under way."""

    longest_wait: float
    """How many seconds the oldest of these waits has lasted; 0 if there is none."""

    waits: int
    """How many waits have ended in this process since it began or was forked: one for
    each query, commit and connection attempt, and more if a result comes in pieces."""

    timed_out: int
    """How many waits took longer than the callback's *timeout* or
    ``connect_timeout``."""

    cancelled: int
    """How many cancel requests the server has accepted: for interrupted queries, and for
    ``connection.cancel()``."""


def patch_psycopg(
    framework: str | None = None,
    *,
    resolve_hosts: bool | None = None,
    cancel_interrupted: bool | None = None,
    replace: bool = False,
) -> None:
    """Make every psycopg2 connection of this process wait cooperatively.

    *framework* is ``"gevent"``, ``"eventlet"`` or ``"uwsgi"``. ``None`` selects it: in
    uWSGI with an async engine the one of that engine, else the one that has
    monkey-patched the standard library's sockets.

    With *resolve_hosts* host names are resolved off the loop and passed to libpq as
    ``hostaddr``, beside the name. (Not if the connection string names a service, whose
    file may name other hosts.) With *cancel_interrupted* a query whose wait is
    interrupted, by a timeout or a kill, is cancelled on the server too; the wait goes
    on for up to one second for that. An option that is ``None`` keeps its value; at the
    first call it is on, unless the environment variable ``PSYCOGREEN_RESOLVE_HOSTS`` or
    ``PSYCOGREEN_CANCEL_INTERRUPTED`` is ``0``.

    It affects all threads and all connections of the process, open ones from their next
    wait on. A forked process inherits the callback and the options. A second call
    changes only the options that are given. Call it before or after the framework's
    monkey-patching if *framework* is given, only after it if *framework* is ``None``.
    On Linux, if nothing is monkey-patched when a query first waits, the logger
    ``psycogreen.monkey_patch`` has a warning, once in a process.

    Raise `PatchConflict` if another wait callback is installed; *replace* takes over
    from it instead. (eventlet's built-in callback counts as eventlet's, and a
    `functools.partial` of a callback counts as that callback: a limit set with it stays
    in force.) Raise `ImportError` if the framework is missing or too old, or is
    ``"uwsgi"`` outside of uWSGI or under its gevent engine; `ValueError` if *framework* is
    unknown or a variable is neither ``0`` nor ``1``; and `RuntimeError` if *framework* is
    ``None`` and none is found, or is ``"uwsgi"`` and psycopg2 cannot wait with uWSGI's
    engine.
    """
    if framework is None:
        framework = _detect()
    elif framework not in FRAMEWORKS:
        msg = f"unknown framework {framework!r}: it must be one of {_names()}"
        raise ValueError(msg)
    import_module(f"psycogreen.{framework}").patch_psycopg(
        resolve_hosts=resolve_hosts,
        cancel_interrupted=cancel_interrupted,
        replace=replace,
    )


def unpatch_psycopg() -> None:
    """Remove psycogreen's wait callback, so that psycopg2 blocks again.

    Does nothing if none is installed, and never removes a foreign callback. Waits that
    are under way go on cooperatively until they end.
    """
    if _owner(blocking.get_callback(), _OWN):
        blocking.set_callback(None)
        connecting.remove()
        replacing.remove()
        logger.info("wait callback removed")


def status() -> Status:
    """Return how psycopg2 waits in this process, at this moment."""
    callback = get_wait_callback()
    own = _owner(callback, _OWN)
    framework = _owner(callback, _OWN | _BUILTIN)
    patched = monkey_patched()
    connect = connecting.installed()
    ages = stats.ages()
    return Status(
        framework=framework,
        engine=engine(),
        callback=None if callback is None else _name(callback),
        monkey_patched=framework in patched if framework else bool(patched),
        pid=os.getpid(),
        resolve_hosts=bool(callback and connect and connect.resolve),
        cancel_interrupted=bool(own and cancel.enabled),
        compiled=own is not None and _compiled(),
        waiting=len(ages),
        longest_wait=max(ages, default=0.0),
        waits=stats.waits(),
        timed_out=stats.totals.timed_out,
        cancelled=stats.totals.cancelled,
    )


def install(
    callback: blocking.WaitCallback,
    *,
    wait_socket: SocketWait,
    in_hub: Callable[[], bool],
    identify: Callable[[], int] | None = None,
    threads: bool = True,
    resolve: lookups.Resolve | None,
    resolve_hosts: bool | None,
    cancel_interrupted: bool | None,
    replace: bool,
) -> None:
    """Install *callback*, one of psycogreen's own, as `patch_psycopg` describes.

    *wait_socket* waits for descriptors other than a query's socket. *in_hub* returns
    whether the caller is the loop itself, which must not wait. *identify* returns a
    number for the caller where that is not a greenlet. *threads* is whether native
    threads run while the framework waits. *resolve* looks up a host name, if
    *resolve_hosts* is on.
    """
    current = blocking.get_callback()
    wanted = _owner(callback, _OWN)
    installed = _owner(current, _OWN) == wanted
    if not (installed and connecting.installed()):
        resolve_hosts = _initial("resolve_hosts", resolve_hosts)
        cancel_interrupted = _initial("cancel_interrupted", cancel_interrupted)
    builtin = _owner(current, _BUILTIN) == wanted
    if not (current is None or installed or builtin):
        if not replace:
            msg = (
                f"psycopg2 already waits with {_name(current)}, not with "
                f"{_name(callback)}: remove the call that installs the other, or pass "
                f"replace=True to take over"
            )
            logger.warning(msg)
            raise PatchConflict(msg)
        logger.warning("wait callback %s replaced", _name(current))
    if resolve_hosts is not None:
        connecting.install(resolve if resolve_hosts else None)
    if cancel_interrupted is not None:
        cancel.enabled = cancel_interrupted
    # Imported here, since they import greenlet.
    from psycogreen._interface import (
        cancelling,
        copying,
        largeobjects,
        replication,
        sending,
        sharing,
        turns,
    )

    turns.configure(wait_socket, in_hub, sending.fit, identify)
    cancelling.configure(wait_socket if threads else None, in_hub)
    largeobjects.configure(threads=threads)
    replication.configure(wait_socket)
    # Of several replacements of a method, the last one is called first. So those that
    # take the connection's turn come after those that use the connection.
    replacing.install(
        [
            *readback.REPLACEMENTS,
            *copying.REPLACEMENTS,
            *largeobjects.REPLACEMENTS,
            *replication.REPLACEMENTS,
            *cancelling.REPLACEMENTS,
            *sharing.REPLACEMENTS,
        ]
    )
    if not installed:
        blocking.set_callback(callback)
        logger.info("%s wait callback installed", wanted)


def _initial(option: str, given: bool | None) -> bool:
    """Return the value of an option at the first call of `patch_psycopg`."""
    if given is not None:
        return given
    variable = f"PSYCOGREEN_{option.upper()}"
    value = os.environ.get(variable) or "1"
    if value not in ("0", "1"):
        msg = f"{variable}={value!r}: it must be '0' or '1', or unset"
        raise ValueError(msg)
    return value == "1"


def monkey_patched() -> list[str]:
    """Return the frameworks that have monkey-patched the standard library's sockets.

    It looks only at modules that are imported already: a framework that was not
    imported has patched nothing.
    """
    gevent = sys.modules.get("gevent.monkey")
    eventlet = sys.modules.get("eventlet.patcher")
    found = []
    if gevent and gevent.is_module_patched("socket"):
        found.append("gevent")
    if eventlet and eventlet.is_monkey_patched("socket"):
        found.append("eventlet")
    return found


def _detect() -> str:
    if of_uwsgi := engine():
        return "gevent" if of_uwsgi == "gevent" else "uwsgi"
    match monkey_patched():
        case [framework]:
            return framework
        case []:
            msg = (
                "no framework to wait with: neither gevent nor eventlet has "
                "monkey-patched this process; call gevent.monkey.patch_all() or "
                "eventlet.monkey_patch() first, run uWSGI with an async engine, or "
                f"name the framework ({_names()})"
            )
        case found:
            msg = (
                f"{' and '.join(found)} have both monkey-patched this process: "
                f"name the framework to wait with ({_names()})"
            )
    raise RuntimeError(msg)


def _names() -> str:
    return ", ".join(map(repr, FRAMEWORKS))


def _compiled() -> bool:
    # Imported here, since it imports greenlet.
    from psycogreen._wait import twin

    return twin.compiled


def _owner(callback: object, modules: dict[str, str]) -> str | None:
    """Return the framework of *callback* according to *modules*, or ``None``."""
    return modules.get(getattr(_unwrap(callback), "__module__", None) or "")


def _name(callback: object) -> str:
    """Return the dotted name of *callback*, or its `repr` if it has none."""
    function = _unwrap(callback)
    name = getattr(function, "__qualname__", None)
    return f"{function.__module__}.{name}" if name else repr(function)


def _unwrap(callback: object) -> object:
    while isinstance(callback, partial):
        callback = callback.func
    return callback
