"""The async engine of the uWSGI that this process belongs to."""

from __future__ import annotations

import mmap
import sys
from types import ModuleType

# In bytes: uGreen's default, and the size that Python's recursion limits need.
UGREEN_DEFAULT_STACK = 256 * 1024
UGREEN_STACK = 8 * 1024 * 1024

CHOICES = "--gevent N, --async N --greenlet or --async N --ugreen"


def engine() -> str | None:
    """Return uWSGI's async engine: ``"gevent"``, ``"greenlet"`` or ``"ugreen"``.

    Return ``None`` if this is not uWSGI, or uWSGI has no engine that psycopg2 can wait
    with; `why_none` gives the reason. The result is the same in all of uWSGI's
    processes, although only the workers run the engine.
    """
    uwsgi = _uwsgi()
    if uwsgi is None:
        return None
    if uwsgi.loop is not None:
        return "gevent" if uwsgi.loop == b"gevent" else None
    if _number(uwsgi, "async") < 2:
        return None
    # With both options the greenlet plugin wins: it initialises later.
    return next((name for name in ("greenlet", "ugreen") if _is_on(uwsgi, name)), None)


def why_none() -> str:
    """Return why there is no engine, and the options that give one."""
    uwsgi = _uwsgi()
    if uwsgi is None:
        return "this process does not belong to uWSGI"
    if uwsgi.loop is not None:
        reason = f"psycopg2 cannot wait with uWSGI's loop {uwsgi.loop.decode()!r}"
    elif _number(uwsgi, "async") > 1:
        reason = "uWSGI's --async has no coroutine engine"
    else:
        reason = "uWSGI runs without an async engine"
    return f"{reason}: use {CHOICES}"


def dangers() -> list[str]:
    """Return warnings about uWSGI's options that can crash a worker with this engine."""
    uwsgi = _uwsgi()
    if uwsgi is None or engine() != "ugreen":
        return []
    found = []
    size = _number(uwsgi, "ugreen-stacksize") * mmap.PAGESIZE or UGREEN_DEFAULT_STACK
    if size < UGREEN_STACK:
        found.append(
            f"uGreen's stacks are {size // 1024} KB: deep recursion in C (nested "
            "JSON, pickles, comparisons) crashes the worker where Python would raise "
            f"RecursionError: set ugreen-stacksize = {UGREEN_STACK // mmap.PAGESIZE}"
        )
    if not _number(uwsgi, "post-buffering"):
        found.append(
            "a request under uGreen that waits for the rest of its body crashes the "
            "worker: set post-buffering = 65536"
        )
    return found


def has_jit() -> bool:
    """Return whether CPython's JIT compiler is on."""
    jit = getattr(sys, "_jit", None)  # from Python 3.14 on
    return bool(jit and jit.is_enabled())


def _uwsgi() -> ModuleType | None:
    # uWSGI creates the module before it loads an application. A stub in an
    # application's tests may lack some of its attributes.
    module = sys.modules.get("uwsgi")
    return module if hasattr(module, "loop") and hasattr(module, "opt") else None


def _option(uwsgi: ModuleType, name: str) -> bytes | bool:
    """Return the value of an option, ``True`` if it was given without one."""
    value = uwsgi.opt.get(name, False)
    result: bytes | bool = value[-1] if isinstance(value, list) else value
    return result


def _number(uwsgi: ModuleType, name: str) -> int:
    value = _option(uwsgi, name)
    return int(value)


def _is_on(uwsgi: ModuleType, name: str) -> bool:
    value = _option(uwsgi, name)
    if isinstance(value, bytes):
        return value.lower() not in (b"false", b"off", b"no", b"0")
    return value
