"""Connect without blocking the loop: resolve host names, and keep ``connect_timeout``.

libpq resolves host names in its first call, which blocks the thread. It leaves
``connect_timeout`` to the code that polls, which cannot make it try the next host. Both
are done here, around the function that `psycopg2.connect` calls.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg2
from psycopg2.extensions import connection, get_wait_callback

from psycogreen._interface import readback
from psycogreen._interface.hosts import (
    Host,
    Plan,
    as_shown,
    is_same_address,
    plan,
    plan_begun,
    with_addresses,
)
from psycogreen._interface.lookups import look_up_in_place
from psycogreen._interface.restart import restart
from psycogreen._wait import deadline
from psycogreen._wait.deadline import (
    ConnectTimeout,
    error_prefix,
    parse_connect_timeout,
)
from psycogreen._wait.libpq import host_address
from psycogreen._wait.libpq import parameters as libpq_parameters
from psycogreen._wait.stats import totals

Connect = Callable[..., connection]
Resolve = Callable[[str], list[str]]


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
        attempt = _Attempt(planned)
        if self.resolve and planned.has_names:
            attempt.resolve(self.resolve)
        token = deadline.current.set(attempt)
        try:
            conn = self.original(attempt.dsn, *args, **options)
        except psycopg2.OperationalError as ex:
            attempt.complete_first(ex)
            raise
        finally:
            deadline.current.reset(token)
        # Of an asynchronous connection, whose application does the waiting.
        if attempt.is_resolved and not attempt.has_begun and attempt.is_of(conn):
            readback.note(conn, planned)
        return conn


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


class _Attempt:
    """The attempt to connect to one of the hosts of a plan.

    libpq itself tries the hosts in turn and decides after which errors to go on. When
    a host's time is up, the attempt restarts with all other hosts. These include hosts
    that libpq has tried already: which ones depends on ``target_session_attrs`` and
    ``load_balance_hosts``.
    """

    is_taken = False
    is_resolved = False
    has_begun = False
    _errors = ""
    _first: Host | None = None
    _first_prefix = ""

    def __init__(self, planned: Plan) -> None:
        self.dsn = planned.dsn
        self._plan = planned
        self._hosts = planned.hosts
        self._has_one_address = planned.has_one_address

    def resolve(self, resolve: Resolve) -> None:
        """Replace each host name by its addresses.

        Raise `psycopg2.OperationalError` if no host has an address.
        """
        self.is_resolved = True
        found = tuple([self._addresses(host, resolve) for host in self._hosts])
        self._hosts, self.dsn = with_addresses(self._plan, found)
        if not self._hosts:
            raise psycopg2.OperationalError(self._errors)
        self._has_one_address = len(self._hosts) == 1

    def _addresses(self, host: Host, resolve: Resolve) -> tuple[str, ...]:
        if not host.is_name:
            return ()
        try:
            return tuple(resolve(host.host))
        except (OSError, UnicodeError) as ex:
            reason = getattr(ex, "strerror", None) or ex
            self._errors += (
                f'could not translate host name "{host.host}" to address: {reason}\n'
            )
            return ()

    def is_of(self, conn: connection) -> bool:
        """Return whether *conn* tries the hosts of this attempt.

        A class of connections may have added parameters, as a replication connection
        does: then go by these.
        """
        dsn = _dsn(conn)
        if dsn == as_shown(self.dsn):
            return True
        real, own = plan(dsn), plan(self.dsn)
        if real is None or own is None or real.hosts != own.hosts:
            return False
        self._plan = self._plan.with_settings_of(real)
        return True

    def has_one_address(self) -> bool:
        """Return whether there is only one host, and libpq need not resolve it."""
        return self._has_one_address

    def begin(self, conn: connection) -> int | None:
        """Record which host *conn* tries first, if there are several.

        Return the plan's seconds for each host; ``None`` if without limit.
        """
        if self.is_resolved and not self.has_begun:
            readback.note(conn, self._plan)
        self.has_begun = True
        if not self._has_one_address:
            self._first = self._here(conn)
            self._first_prefix = self._libpq_prefix(conn, self._first)
        value = self._plan.connect_timeout
        return None if value is None else parse_connect_timeout(value)

    def leave_host(self, conn: connection) -> None:
        """Restart without the host that *conn* is at."""
        silent = self._here(conn)
        self._errors += self._named(self._libpq_prefix(conn, silent))
        self._errors += "timeout expired\n"
        rest = list(self._hosts)
        at = rest.index(silent)
        rest[at : at + 1] = _other_addresses(silent, host_address(conn))
        if not rest:
            raise ConnectTimeout(self._errors)
        totals.timed_out += 1
        self._hosts = tuple(rest)
        self._has_one_address = len(rest) == 1 and not rest[0].is_name
        # The class of the connection may have replaced the password.
        self._plan = self._plan.with_settings_of(_plan_begun(conn))
        try:
            restart(conn, self._plan.with_hosts(rest))
        except psycopg2.OperationalError as ex:
            ex.args = (self._errors + self._named(str(ex)),)
            raise
        if not readback.is_noted(conn):
            readback.note(conn, self._plan)
        self._first, self._first_prefix = None, ""
        self.begin(conn)

    def _here(self, conn: connection) -> Host:
        """Return the host that *conn* is at."""
        info = conn.info
        where = info.host, host_address(conn), info.port
        found = (host for host in self._hosts if host.is_at(*where))
        return next(found, self._hosts[0])

    def _libpq_prefix(self, conn: connection, host: Host) -> str:
        """Return the beginning of libpq's error about *host*, which *conn* is at."""
        if host.address:
            return host.libpq_prefix()
        return error_prefix(conn.info.host, host_address(conn), conn.info.port)

    def completed(self, conn: connection, error: str) -> str:
        """Return *error* with the beginning that libpq has lost.

        When psycopg2 makes the attempt non-blocking, libpq forgets the prefix of the
        current host and the errors of all hosts that failed before.
        """
        first = self._first or self._hosts[0]
        earlier = self._hosts[: self._hosts.index(first)]
        # If libpq has shuffled the hosts, it may not have tried them.
        at_once = () if self._plan.is_shuffled else earlier
        lines = [
            f"{host.error_prefix()}connection failed immediately\n" for host in at_once
        ]
        prefix = self._first_prefix or self._libpq_prefix(conn, first)
        return "".join([self._errors, *lines, self._named(prefix + error)])

    def complete_first(self, error: psycopg2.OperationalError) -> None:
        """Complete libpq's *error* if all hosts failed immediately.

        An error that the connection factory raised by itself stays as it is.
        """
        text = str(error)
        if not self.has_begun and any(
            host.libpq_prefix() in text for host in self._hosts
        ):
            error.args = (self._errors + self._named(text),)

    def _named(self, error: str) -> str:
        """Return *error* with each host's name added to its address in libpq's text.

        Hosts that share an address are taken in their order.
        """
        prefixes: dict[str, list[str]] = {}
        for host in self._hosts:
            prefixes.setdefault(host.libpq_prefix(), []).append(host.error_prefix())
        seen: Counter[str] = Counter()

        def name(match: re.Match[str]) -> str:
            choices = prefixes[match[0]]
            seen[match[0]] += 1
            return choices[(seen[match[0]] - 1) % len(choices)]

        return re.sub("|".join(map(re.escape, prefixes)), name, error)


class _AttemptElsewhere:
    """An attempt of which only the connection object is known.

    The application may have created the connection by other means, may itself do the
    waiting, or libpq may have read the hosts from a service file. When the time of the
    first host is up, the parameters that libpq has make a plan.
    """

    is_taken = False
    _first_prefix = ""
    _planned: _Attempt | None = None

    def is_of(self, conn: connection) -> bool:
        return True

    def begin(self, conn: connection) -> int | None:
        info = conn.info
        parameters = info.dsn_parameters
        address = host_address(conn)
        # If libpq was given an address, it shows that and not the name.
        given = parameters.get("hostaddr", "").split(",")
        host = address if address in given else info.host
        self._first_prefix = error_prefix(host, address, info.port)
        return parse_connect_timeout(parameters.get("connect_timeout"))

    def has_one_address(self) -> bool:
        return self._planned is not None and self._planned.has_one_address()

    def leave_host(self, conn: connection) -> None:
        if self._planned is None:
            self._planned = _Attempt(_plan_begun(conn))
        self._planned.leave_host(conn)

    def completed(self, conn: connection, error: str) -> str:
        if self._planned is None:
            return self._first_prefix + error
        return self._planned.completed(conn, error)


deadline.begun_elsewhere = _AttemptElsewhere

# As psycopg2 has it, before it is replaced.
_dsn: Callable[[connection], str] = vars(connection)["dsn"].__get__


def _plan_begun(conn: connection) -> Plan:
    """Return the plan of *conn*, which libpq has begun to open."""
    return plan_begun(_dsn(conn), libpq_parameters(conn))


def _other_addresses(host: Host, address: str) -> list[Host]:
    """Return the addresses of *host* but *address*, if it is a name that libpq looked up."""
    if not host.is_name:
        return []
    current = installed()
    resolve = current.resolve if current and current.resolve else look_up_in_place
    try:
        found = resolve(host.host)
    except (OSError, UnicodeError):
        return []
    hosts = (Host(host.host, one, host.port, True) for one in found)
    return [other for other in hosts if not is_same_address(other.address, address)]
