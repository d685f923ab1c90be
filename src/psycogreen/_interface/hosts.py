"""The hosts of a connection string and the environment, as libpq reads them."""

from __future__ import annotations

import ipaddress
import itertools
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn

from psycogreen._wait.deadline import DEFAULT_PORT, error_prefix

LISTS = {"host": "PGHOST", "hostaddr": "PGHOSTADDR", "port": "PGPORT"}
"""The keywords whose values list one item for each host, with their variables."""

_VARIABLES = {
    **LISTS,
    "service": "PGSERVICE",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "load_balance_hosts": "PGLOADBALANCEHOSTS",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
}


@dataclass(frozen=True, slots=True)
class Host:
    """One of the hosts of a connection string."""

    host: str
    address: str
    port: str
    found: bool = False
    """Whether the address was looked up, not given by the application."""

    @property
    def is_name(self) -> bool:
        """Whether a resolver is needed to find the address."""
        return not self.address and _is_name(self.host)

    def libpq_prefix(self) -> str:
        """Return the beginning of libpq's error about this host, with its address."""
        return error_prefix(self.address or self.host, "", self.port)

    def error_prefix(self) -> str:
        """Return the beginning that the error has if libpq has looked up the name."""
        if not self.found:
            return self.libpq_prefix()
        return error_prefix(self.host, _without_scope(self.address), self.port)

    def is_at(self, host: str, address: str, port: int) -> bool:
        """Return whether the values that libpq reports are those of this host."""
        if int(self.port or DEFAULT_PORT) != port:
            return False
        if self.address:
            is_here = self.address == address or is_same_address(self.address, address)
            return is_here and self.host in ("", host)
        # libpq's default is a unix socket, or localhost if it was built without these.
        is_default = host.startswith(("/", "@")) or host == "localhost"
        return self.host == host or (not self.host and is_default)


@lru_cache(maxsize=64)
def _is_name(host: str) -> bool:
    if not host or host[0] in "/@":
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


def _without_scope(address: str) -> str:
    return address.partition("%")[0]


def is_same_address(one: str, other: str) -> bool:
    """Return whether the addresses are equal, ignoring the scope that libpq omits."""
    try:
        return _parsed(one) == _parsed(other)
    except (ValueError, OSError):
        return False


def _parsed(address: str) -> object:
    """Return an address as libpq reads it, also a short one such as ``127.1``."""
    text = _without_scope(address)
    if ":" in text:
        return ipaddress.ip_address(text)
    return ipaddress.ip_address(socket.inet_aton(text))


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The parameters for connecting, from a connection string and the environment."""

    dsn: str
    shown: str
    """The same as `connection.dsn` shows it."""
    hosts: tuple[Host, ...]
    connect_timeout: str | None
    is_shuffled: bool
    """Whether libpq shuffles the hosts."""
    is_in_order: bool
    """Whether libpq tries each host once, in the given order."""
    given: Mapping[str, str]
    """The application's values of *host*, *hostaddr* and *port*."""
    inherited: Mapping[str, str]
    """The values that the environment adds."""
    rest: str
    """The connection string without these three."""
    has_names: bool
    """Whether a resolver is needed to find the address of a host."""
    has_one_address: bool
    """Whether there is one host, and it needs no resolver."""

    def with_settings_of(self, other: Plan) -> Plan:
        """Return the plan with all that *other* says, but for its hosts."""
        return replace(
            self,
            connect_timeout=other.connect_timeout,
            is_shuffled=other.is_shuffled,
            is_in_order=other.is_in_order,
            rest=other.rest,
        )

    def with_hosts(self, hosts: Iterable[Host]) -> str:
        """Return the connection string with its hosts replaced by *hosts*."""
        rows = [(host.host, host.address, host.port) for host in hosts]
        lists = dict(zip(LISTS, zip(*rows, strict=True), strict=True))
        # An empty value matters too: it overrides the environment's.
        wanted = self.given.keys() | self.inherited.keys()
        pairs = [
            f"{keyword}='{_escaped(','.join(items))}'"
            for keyword, items in lists.items()
            if any(items) or keyword in wanted
        ]
        return " ".join([self.rest, *pairs]).lstrip()


@lru_cache(maxsize=64)
def at_addresses(name: Host, addresses: tuple[str, ...]) -> tuple[Host, ...]:
    """Return the host *name* at each of these addresses."""
    # The name stays beside it: TLS verification and .pgpass go by the name.
    return tuple([Host(name.host, one, name.port, True) for one in addresses])


NEXT = Host("", "psycogreen.next", "")
"""A host whose address libpq cannot parse, and says so, if it comes to it."""


def until_name(hosts: tuple[Host, ...]) -> tuple[Host, ...]:
    """Return *hosts* up to the first name. In place of that and the rest is `NEXT`."""
    for number, host in enumerate(hosts):
        if host.is_name:
            return (*hosts[:number], NEXT)
    return hosts


@lru_cache(maxsize=64)
def with_hosts(planned: Plan, hosts: tuple[Host, ...]) -> str:
    """Return what `Plan.with_hosts` does, made once as long as the hosts are the same."""
    return planned.with_hosts(hosts)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")


def plan(dsn: str) -> Plan | None:
    """Return the plan of *dsn*; ``None`` if libpq must read the hosts itself.

    That is so if a service file may name other hosts, if the lists differ in length
    (libpq raises an error), and if *dsn* is not a connection string.
    """
    # os.environ.get() would be slow: it encodes the name and decodes the value each
    # time, and raises and catches an exception for each variable that is not set.
    return _plan(dsn, *map(_data.get, _keys))


@lru_cache(maxsize=64)
def _plan(dsn: str, *environment: Any) -> Plan | None:  # noqa: ANN401
    """Make the plan; cached for the same arguments.

    *environment* has the values of `_VARIABLES`, encoded as `os.environ` stores them.
    """
    inherited = {
        keyword: os.environ.decodevalue(value)
        for keyword, value in zip(_VARIABLES, environment, strict=True)
        if value is not None
    }
    try:
        parameters = parse_dsn(dsn)
    except psycopg2.ProgrammingError:
        return None
    if "service" in parameters or "service" in inherited:
        return None
    settings = {**inherited, **parameters}
    hosts = _hosts(settings)
    return _made(dsn, hosts, parameters, settings, parameters) if hosts else None


@lru_cache(maxsize=64)
def as_shown(dsn: str) -> str:
    """Return the `connection.dsn` that psycopg2 makes of *dsn*: it hides the password."""
    parameters = parse_dsn(dsn)
    if "password" not in parameters:
        return dsn
    return str(make_dsn(**{**parameters, "password": "xxx"}))


def plan_begun(dsn: str, parameters: Mapping[str, str]) -> Plan:
    """Return the plan of a connection that libpq has begun to open.

    *dsn* is what psycopg2 shows for it, maybe without its password. *parameters* are
    libpq's own, also from the environment and a service file.
    """
    return _made(dsn, _hosts(parameters), parse_dsn(dsn), parameters, parameters)


def _made(
    dsn: str,
    hosts: tuple[Host, ...],
    shown: Mapping[str, str],
    settings: Mapping[str, str],
    parameters: Mapping[str, str],
) -> Plan:
    """Make a plan for *hosts*, which come from *settings*.

    *shown* is what *dsn* says. The plan connects with *parameters*.
    """
    rest = {word: value for word, value in parameters.items() if word not in LISTS}
    has_names = any(host.is_name for host in hosts)
    is_shuffled = settings.get("load_balance_hosts") == "random"
    return Plan(
        dsn=dsn,
        shown=as_shown(dsn),
        hosts=hosts,
        connect_timeout=settings.get("connect_timeout"),
        is_shuffled=is_shuffled,
        is_in_order=not (
            is_shuffled or settings.get("target_session_attrs") == "prefer-standby"
        ),
        given={word: shown[word] for word in LISTS if word in shown},
        inherited={
            word: settings[word]
            for word in LISTS
            if word in settings and word not in shown
        },
        # Not by make_dsn(): a value from the environment need not be UTF-8.
        rest=" ".join(f"{word}='{_escaped(value)}'" for word, value in rest.items()),
        has_names=has_names,
        has_one_address=len(hosts) == 1 and not has_names,
    )


def _hosts(settings: Mapping[str, str]) -> tuple[Host, ...]:
    """Return the hosts; none if the lists differ in length."""
    columns = [settings.get(keyword, "").split(",") for keyword in LISTS]
    hosts, addresses, ports = columns
    count = max(len(hosts), len(addresses))
    # An empty list fits any number of hosts; so does a single port.
    columns = [
        column * count
        if column == [""] or (column is ports and len(ports) == 1)
        else column
        for column in columns
    ]
    if {len(column) for column in columns} != {count}:
        return ()
    return tuple(itertools.starmap(Host, zip(*columns, strict=True)))


def named_hosts(parameters: Mapping[str, str]) -> list[str]:
    """Return the host names without an address among a connection's parameters."""
    rows = itertools.zip_longest(
        parameters.get("host", "").split(","),
        parameters.get("hostaddr", "").split(","),
        fillvalue="",
    )
    return [host for host, address in rows if Host(host, address, "").is_name]


_data = os.environ._data  # type: ignore[attr-defined]
_keys = [os.environ.encodekey(name) for name in _VARIABLES.values()]
