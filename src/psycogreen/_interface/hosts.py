"""The hosts of a connection string, as libpq counts them."""

from __future__ import annotations

import ipaddress
import itertools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn

from psycogreen._wait.deadline import DEFAULT_PORT, error_prefix

LISTS = {"host": "PGHOST", "hostaddr": "PGHOSTADDR", "port": "PGPORT"}
"""The keywords whose values are lists, one item for each host, and their variables."""

_VARIABLES = {
    **LISTS,
    "service": "PGSERVICE",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "load_balance_hosts": "PGLOADBALANCEHOSTS",
}

_Environment = tuple[Any, ...]
"""The values of `_VARIABLES` as `os.environ` keeps them, encoded."""


@dataclass(frozen=True, slots=True)
class Host:
    """One of the hosts of a connection string."""

    host: str
    address: str
    port: str
    found: bool = False
    """Whether the address was looked up, and not given."""

    @property
    def is_name(self) -> bool:
        """Whether it takes a resolver to find its address."""
        if self.address or not self.host or self.host[0] in "/@":
            return False
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return True
        return False

    def libpq_prefix(self) -> str:
        """Return how libpq begins what it says about this host: it names the address."""
        return error_prefix(self.address or self.host, "", self.port)

    def error_prefix(self) -> str:
        """Return the same as if libpq had looked the name up."""
        if not self.found:
            return self.libpq_prefix()
        return error_prefix(self.host, _without_scope(self.address), self.port)

    def is_at(self, host: str, address: str, port: int) -> bool:
        """Return whether libpq is at this one, by what it tells."""
        return (
            self.host in ("", host)
            and int(self.port or DEFAULT_PORT) == port
            and (not self.address or _is_same(self.address, address))
        )


def _without_scope(address: str) -> str:
    return address.partition("%")[0]


def _is_same(one: str, other: str) -> bool:
    """Return whether the addresses are the same; libpq's lacks the scope."""
    try:
        addresses = [
            ipaddress.ip_address(_without_scope(text)) for text in (one, other)
        ]
    except ValueError:
        return False
    return addresses[0] == addresses[1]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a connection string and the environment say about connecting."""

    dsn: str
    hosts: tuple[Host, ...]
    connect_timeout: str | None
    is_shuffled: bool
    """Whether libpq tries the hosts in an order of its own."""
    given: Mapping[str, str]
    """What the application has given as *host*, *hostaddr* and *port*."""
    inherited: Mapping[str, str]
    """What the environment adds to that."""
    rest: str
    """The connection string without these three."""
    has_names: bool
    """Whether it takes a resolver to find the address of a host."""

    def with_hosts(self, hosts: Iterable[Host]) -> str:
        """Return the connection string with *hosts* in the place of its own."""
        rows = [(host.host, host.address, host.port) for host in hosts]
        lists = dict(zip(LISTS, zip(*rows, strict=True), strict=True))
        # An empty one says something too: that the environment's does not count.
        wanted = self.given.keys() | self.inherited.keys()
        pairs = [
            f"{keyword}='{_escaped(','.join(items))}'"
            for keyword, items in lists.items()
            if any(items) or keyword in wanted
        ]
        return " ".join([self.rest, *pairs]).lstrip()


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")


def plan(dsn: str) -> Plan | None:
    """Return the plan of *dsn*; ``None`` if libpq has to find the hosts.

    It has if a service file may name others, if the lists do not fit together, of
    which it complains, and if *dsn* is no connection string.
    """
    # Not by os.environ.get(): it encodes the name and decodes the value each time, and
    # raises and catches an exception for each that is not set.
    return _plan(dsn, tuple(map(_data.get, _keys)))


@lru_cache(maxsize=64)
def _plan(dsn: str, environment: _Environment) -> Plan | None:
    """Make the plan, once as long as neither argument changes."""
    inherited = {
        keyword: os.environ.decodevalue(value)
        for keyword, value in zip(_VARIABLES, environment, strict=True)
        if value is not None
    }
    try:
        parameters = parse_dsn(dsn)
    except psycopg2.ProgrammingError:
        return None
    settings = {**inherited, **parameters}
    hosts = () if "service" in settings else _hosts(settings)
    if not hosts:
        return None
    rest = {word: value for word, value in parameters.items() if word not in LISTS}
    return Plan(
        dsn=dsn,
        hosts=hosts,
        connect_timeout=settings.get("connect_timeout"),
        is_shuffled=settings.get("load_balance_hosts") == "random",
        given={word: parameters[word] for word in LISTS if word in parameters},
        inherited={
            word: inherited[word]
            for word in LISTS
            if word in inherited and word not in parameters
        },
        rest=str(make_dsn(**rest)),
        has_names=any(host.is_name for host in hosts),
    )


def _hosts(settings: Mapping[str, str]) -> tuple[Host, ...]:
    """Return the hosts, or none if the lists do not fit together."""
    columns = [settings.get(keyword, "").split(",") for keyword in LISTS]
    hosts, addresses, ports = columns
    count = max(len(hosts), len(addresses))
    # An empty list stands for any number; so does a single port.
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
    """Return the host names, among the parameters of a connection, without address."""
    rows = itertools.zip_longest(
        parameters.get("host", "").split(","),
        parameters.get("hostaddr", "").split(","),
        fillvalue="",
    )
    return [host for host, address in rows if Host(host, address, "").is_name]


_data = os.environ._data  # type: ignore[attr-defined]
_keys = [os.environ.encodekey(name) for name in _VARIABLES.values()]
