"""Attempts to connect: host after host, as libpq tries them, each within its time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from itertools import chain, dropwhile

import psycopg2
from psycopg2.extensions import connection

from psycogreen._interface import readback
from psycogreen._interface.hosts import (
    NEXT,
    Host,
    Plan,
    as_shown,
    at_addresses,
    is_same_address,
    plan,
    plan_begun,
    until_name,
    with_hosts,
)
from psycogreen._interface.lookups import Resolve, look_up_in_place
from psycogreen._interface.restart import restart
from psycogreen._wait import deadline, libpq
from psycogreen._wait.deadline import (
    ConnectTimeout,
    error_prefix,
    parse_connect_timeout,
)
from psycogreen._wait.libpq import host_address
from psycogreen._wait.stats import totals


class PlannedAttempt:
    """The attempt to connect to one of the hosts of a plan.

    libpq itself tries the hosts in turn and decides after which errors to go on. When
    a host's time is up, the attempt restarts with all other hosts. These include hosts
    that libpq has tried already: which ones depends on ``target_session_attrs`` and
    ``load_balance_hosts``.

    A name is looked up when libpq comes to it, as libpq does: the name of a site that is
    down must not delay a connection to another. libpq is given the hosts before it.
    """

    is_taken = False
    """Whether its connection is known."""

    is_resolved = False
    """Whether psycogreen looks up the names, not libpq."""

    has_begun = False
    """Whether libpq has begun to connect without an error."""

    restarts = 0
    """How often it has restarted with other hosts."""

    _errors = ""
    _resolve: Resolve
    _first: Host | None = None
    _first_prefix = ""

    def __init__(self, planned: Plan) -> None:
        """Begin with the first host of *planned*."""
        self.dsn = planned.dsn
        self._shown = planned.shown
        self._plan = planned
        self._hosts = planned.hosts
        self._has_one_address = planned.has_one_address

    def resolve(self, resolve: Resolve, *, all_names: bool) -> None:
        """Replace the first host by its addresses if it is a name; or *all_names*.

        Raise `psycopg2.OperationalError` if no host is left.
        """
        self.is_resolved = True
        self._resolve = resolve
        if all_names or not self._plan.is_in_order:
            self._hosts = tuple(
                chain.from_iterable(map(self._addresses, self._plan.hosts))
            )
        self.begin_with_first()
        self._has_one_address = len(self._hosts) == 1

    def begin_with_first(self) -> None:
        """Set the connection string for the first host and those after it.

        Raise `psycopg2.OperationalError` if no host is left.
        """
        self._look_up_first()
        self.dsn = with_hosts(self._plan, until_name(self._hosts))
        self._shown = as_shown(self.dsn)

    def _look_up_first(self) -> None:
        """Look up the first host's name, if it is one; leave out what has no address."""
        hosts = self._hosts
        while hosts and hosts[0].is_name:
            hosts = (*self._addresses(hosts[0]), *hosts[1:])
        if not hosts:
            raise psycopg2.OperationalError(self._errors)
        self._hosts = hosts

    def _addresses(self, host: Host) -> tuple[Host, ...]:
        """Return *host* at each of the addresses of its name."""
        if not host.is_name:
            return (host,)
        try:
            return at_addresses(host, tuple(self._resolve(host.host)))
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
        if dsn == self._shown:
            return True
        real, own = plan(dsn), plan(self.dsn)
        if real is None or own is None or real.hosts != own.hosts:
            return False
        self._plan = self._plan.with_settings_of(real)
        return True

    def has_one_address(self) -> bool:
        """Return whether there has been one host only, and libpq need not resolve it."""
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
        self.go_on(conn)

    def goes_on_after(self, conn: connection, error: psycopg2.OperationalError) -> bool:
        """Complete *error*; return whether libpq would try a name that was not looked up.

        Then leave the hosts that it has tried: `go_on` restarts with the name.
        """
        error.args = (self.completed(conn, str(error)),)
        return self._comes_to_name(error)

    def goes_on_after_first(self, error: psycopg2.OperationalError) -> bool:
        """Do the same if all hosts have failed immediately, in libpq's first call.

        An error that the connection factory raised by itself stays as it is.
        """
        text = str(error)
        prefixes = [host.libpq_prefix() for host in self._hosts]
        if self.has_begun or not any(
            part in text for part in (NEXT.address, *prefixes)
        ):
            return False
        error.args = (self._errors + self._named(text),)
        return self._comes_to_name(error)

    def _comes_to_name(self, error: psycopg2.OperationalError) -> bool:
        """Leave the hosts before the next name, if *error* says that libpq came to it."""
        text = str(error)
        at = text.find(NEXT.address) if self.is_resolved else -1
        if at < 0:
            return False
        self._errors = text[: text.rfind("\n", 0, at) + 1]
        # Another error may be raised while this one is handled, and show it.
        error.args = (self._errors,)
        self._hosts = tuple(dropwhile(lambda host: not host.is_name, self._hosts))
        return True

    def go_on(self, conn: connection) -> None:
        """Restart with the hosts that are left."""
        # The class of the connection may have replaced the password.
        self._plan = self._plan.with_settings_of(_plan_begun(conn))
        self._has_one_address = False
        while not self._try_restart(conn):
            pass  # libpq came to a name at once
        self.restarts += 1
        if not readback.is_noted(conn):
            readback.note(conn, self._plan)
        self._first, self._first_prefix = None, ""
        self.begin(conn)

    def _try_restart(self, conn: connection) -> bool:
        """Restart with the first host and those after it, up to the next name.

        Return ``False`` if libpq has failed to connect to all of these immediately.
        """
        hosts = self._hosts
        if self.is_resolved:
            self._look_up_first()
            hosts = until_name(self._hosts)
        try:
            # Not cached: the string may have a password that is used once.
            restart(conn, self._plan.with_hosts(hosts))
        except psycopg2.OperationalError as ex:
            ex.args = (self._errors + self._named(str(ex)),)
            if not self._comes_to_name(ex):
                raise
            return False
        return True

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


class AttemptElsewhere:
    """An attempt of which only the connection object is known.

    The application may have created the connection by other means, may itself do the
    waiting, or libpq may have read the hosts from a service file. When the time of the
    first host is up, the parameters that libpq has make a plan.
    """

    is_taken = False
    restarts = 0

    _first_prefix = ""
    _planned: PlannedAttempt | None = None

    def is_of(self, conn: connection) -> bool:
        """Return ``True``: it becomes the attempt of any connection."""
        return True

    def begin(self, conn: connection) -> int | None:
        """Record the host that *conn* tries; return its seconds, ``None`` without limit."""
        info = conn.info
        parameters = info.dsn_parameters
        address = host_address(conn)
        # If libpq was given an address, it shows that and not the name.
        given = parameters.get("hostaddr", "").split(",")
        host = address if address in given else info.host
        self._first_prefix = error_prefix(host, address, info.port)
        return parse_connect_timeout(parameters.get("connect_timeout"))

    def has_one_address(self) -> bool:
        """Return ``False``: there may be more."""
        return False

    def leave_host(self, conn: connection) -> None:
        """Restart without the host that *conn* is at."""
        if self._planned is None:
            self._planned = PlannedAttempt(_plan_begun(conn))
        self._planned.leave_host(conn)
        self.restarts += 1

    def goes_on_after(self, conn: connection, error: psycopg2.OperationalError) -> bool:
        """Complete *error*; return ``False``: libpq has all hosts."""
        error.args = (self.completed(conn, str(error)),)
        return False

    def go_on(self, conn: connection) -> None:
        """Do nothing: it is never called, since `goes_on_after` returns ``False``."""

    def completed(self, conn: connection, error: str) -> str:
        """Return *error* with the beginning that libpq has lost."""
        if self._planned is None:
            return self._first_prefix + error
        return self._planned.completed(conn, error)


deadline.begun_elsewhere = AttemptElsewhere

# As psycopg2 has it, before it is replaced.
_dsn: Callable[[connection], str] = vars(connection)["dsn"].__get__


def _plan_begun(conn: connection) -> Plan:
    """Return the plan of *conn*, which libpq has begun to open."""
    return plan_begun(_dsn(conn), libpq.parameters(conn))


def _other_addresses(host: Host, address: str) -> list[Host]:
    """Return the addresses of *host* but *address*, if it is a name that libpq looked up.

    That has blocked, and so does this.
    """
    if not host.is_name:
        return []
    try:
        found = look_up_in_place(host.host)
    except (OSError, UnicodeError):
        return []
    hosts = at_addresses(host, tuple(found))
    return [other for other in hosts if not is_same_address(other.address, address)]
