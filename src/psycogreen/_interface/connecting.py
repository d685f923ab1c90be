"""Connect without blocking the loop: resolve host names, and keep ``connect_timeout``.

libpq resolves host names itself, which blocks the thread. It leaves ``connect_timeout`` to
the code that polls, which cannot make it try the next host. Both are done around the
function that `psycopg2.connect` calls: here, and in `attempts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import psycopg2
from psycopg2.extensions import connection, get_wait_callback

from psycogreen._interface import readback
from psycogreen._interface.attempts import PlannedAttempt
from psycogreen._interface.hosts import plan
from psycogreen._interface.lookups import Resolve
from psycogreen._wait import deadline

Connect = Callable[..., connection]


class GreenConnect:
    """Has the method that replaces ``psycopg2._connect`` while psycopg2 is patched.

    An object that is called itself would add 1 % to the CPU time of a connection.
    """

    def __init__(self, original: Connect, resolve: Resolve | None) -> None:
        """Connect with *original*; if *resolve* is ``None``, libpq resolves names."""
        self.original = original
        self.resolve = resolve

    def connect(self, dsn: str, *args: object, **options: Any) -> connection:  # noqa: ANN401
        """Connect as `psycopg2.connect` does, cooperatively if a callback is set."""
        planned = plan(dsn) if get_wait_callback() else None
        if planned is None:
            return self.original(dsn, *args, **options)
        attempt = PlannedAttempt(planned)
        if self.resolve and planned.has_names:
            attempt.resolve(self.resolve, all_names=_needs_all_names(options))
        token = deadline.current.set(attempt)
        try:
            while True:
                try:
                    conn = self.original(attempt.dsn, *args, **options)
                except psycopg2.OperationalError as ex:
                    if not attempt.goes_on_after_first(ex):
                        raise
                else:
                    break
                attempt.begin_with_first()
        finally:
            deadline.current.reset(token)
        # Of an asynchronous connection, whose application does the waiting. (A factory may
        # also return something else than a connection.)
        if (
            attempt.is_resolved
            and not attempt.has_begun
            and isinstance(conn, connection)
            and attempt.is_of(conn)
        ):
            readback.note(conn, planned)
        return conn


def _needs_all_names(options: Mapping[str, Any]) -> bool:
    """Return whether all names must be looked up before libpq's first call."""
    # An asynchronous connection may wait without the wait callback.
    if options.get("async") or options.get("async_"):
        return True
    # A factory may use the connection string again, or change it.
    factory = options.get("connection_factory") or connection
    return getattr(factory, "__init__", None) is not connection.__init__


def install(resolve: Resolve | None) -> None:
    """Replace ``psycopg2._connect`` by that of a `GreenConnect`, if psycopg2 has it."""
    current = installed()
    original = current.original if current else getattr(psycopg2, "_connect", None)
    if original:
        green = GreenConnect(original, resolve)
        psycopg2._connect = green.connect  # type: ignore[attr-defined]


def installed() -> GreenConnect | None:
    """Return the `GreenConnect` in place."""
    owner = getattr(getattr(psycopg2, "_connect", None), "__self__", None)
    return owner if isinstance(owner, GreenConnect) else None


def remove() -> None:
    """Restore ``psycopg2._connect``, unless other code has replaced it since then."""
    if current := installed():
        psycopg2._connect = current.original  # type: ignore[attr-defined]
