"""Connecting without a stall: names resolved off the loop, silent hosts left.

libpq resolves host names inside its first call, which blocks whatever waits
for its socket. And it leaves ``connect_timeout`` to whoever polls, with no way
to tell it to go on to the next host. Both are done here, around the function
that `psycopg2.connect` calls.
"""

from __future__ import annotations

import ipaddress
import itertools
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg2
from psycopg2.extensions import connection, get_wait_callback, make_dsn, parse_dsn

from psycogreen._wait.deadline import DEFAULT_PORT, ConnectTimeout, error_prefix

Connect = Callable[..., connection]
Resolve = Callable[[str], list[str]]


class GreenConnect:
    """What stands in for ``psycopg2._connect`` while psycopg2 is patched."""

    def __init__(self, original: Connect, resolve: Resolve | None) -> None:
        """Connect with *original*; with ``None`` leave names to libpq."""
        self.original = original
        self.resolve = resolve

    def __call__(self, dsn: str, *args: object, **options: Any) -> connection:  # noqa: ANN401
        """Connect as `psycopg2.connect` does, cooperatively if that is in force."""

        def connect(dsn: str) -> connection:
            return self.original(dsn, *args, **options)

        if get_wait_callback() is None:
            return connect(dsn)
        try:
            hosts = _hosts(parse_dsn(dsn))
        except psycopg2.ProgrammingError:
            hosts = []  # not a connection string: psycopg2 shall say so
        if not hosts:
            return connect(dsn)
        attempt = _Attempt(dsn, hosts)
        if self.resolve:
            attempt.resolve(self.resolve)
        if options.get("async") or options.get("async_"):
            return connect(attempt.dsn)
        return attempt.connect(connect)


def install(resolve: Resolve | None) -> None:
    """Put `GreenConnect` in the place of ``psycopg2._connect``, if it has one."""
    if current := getattr(psycopg2, "_connect", None):
        original = current.original if isinstance(current, GreenConnect) else current
        psycopg2._connect = GreenConnect(original, resolve)  # type: ignore[attr-defined]


def installed() -> GreenConnect | None:
    """Return the `GreenConnect` in place."""
    current = getattr(psycopg2, "_connect", None)
    return current if isinstance(current, GreenConnect) else None


def remove() -> None:
    """Put back what was there, unless somebody else has put theirs on top."""
    if current := installed():
        psycopg2._connect = current.original  # type: ignore[attr-defined]


@dataclass(frozen=True)
class _Host:
    """One of the hosts of a connection string, as libpq counts them."""

    host: str
    address: str
    port: str

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

    @property
    def error_prefix(self) -> str:
        """How libpq begins what it says about this host."""
        return error_prefix(self.host, self.address, self.port)

    def is_in(self, error: str) -> bool:
        """Whether libpq says something about this host in *error*."""
        prefix = re.escape(self.error_prefix)
        if not self.address:
            # libpq has looked it up, and names the address it was at.
            prefix = prefix.replace('",', r'"( \([^)]*\))?,')
        return re.search(prefix, error) is not None


def _hosts(parameters: Mapping[str, str]) -> list[_Host]:
    """Return the hosts of a connection string, or none if libpq is to find them.

    It is if a service file may name others, or if the lists do not fit together,
    of which libpq complains.
    """

    def listed(keyword: str, variable: str) -> list[str]:
        return parameters.get(keyword, os.environ.get(variable, "")).split(",")

    if "service" in parameters or "PGSERVICE" in os.environ:
        return []
    hosts = listed("host", "PGHOST")
    addresses = listed("hostaddr", "PGHOSTADDR")
    ports = listed("port", "PGPORT")
    count = max(len(hosts), len(addresses))
    columns = []
    for column in hosts, addresses, ports:
        # An empty list stands for any number; so does a single port.
        repeated = column == [""] or (column is ports and len(ports) == 1)
        columns.append(column * count if repeated else column)
    if {len(column) for column in columns} != {count}:
        return []
    return [_Host(*row) for row in zip(*columns, strict=True)]


def named_hosts(parameters: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the host names among the parameters of a connection, with their address.

    The address is empty where libpq has to resolve the name.
    """
    rows = itertools.zip_longest(
        parameters.get("host", "").split(","),
        parameters.get("hostaddr", "").split(","),
        fillvalue="",
    )
    return [(host, address) for host, address in rows if _Host(host, "", "").is_name]


class _Attempt:
    """The attempt to connect to one of several hosts."""

    def __init__(self, dsn: str, hosts: list[_Host]) -> None:
        self.dsn = dsn
        self._hosts = hosts
        self._errors = ""

    def resolve(self, resolve: Resolve) -> None:
        """Put every address of a host name in its place.

        The name stays beside it: TLS verification and .pgpass go by the name.
        """
        if not any(host.is_name for host in self._hosts):
            return
        found = []
        for host in self._hosts:
            if host.is_name:
                found += self._resolved(host, resolve)
            else:
                found.append(host)
        self._use(found)

    def _resolved(self, host: _Host, resolve: Resolve) -> list[_Host]:
        try:
            addresses = resolve(host.host)
        except (OSError, UnicodeError) as ex:
            reason = getattr(ex, "strerror", None) or ex
            self._errors += (
                f'could not translate host name "{host.host}" to address: {reason}\n'
            )
            return []
        return [_Host(host.host, address, host.port) for address in addresses]

    def _use(self, hosts: list[_Host]) -> None:
        """Go on with *hosts* alone, if there are any."""
        if not hosts:
            raise psycopg2.OperationalError(self._errors)
        self._hosts = hosts
        lists = {
            "host": [host.host for host in hosts],
            "hostaddr": [host.address for host in hosts],
            "port": [host.port for host in hosts],
        }
        parameters = parse_dsn(self.dsn)
        for keyword, values in lists.items():
            if any(values) or keyword in parameters:
                parameters[keyword] = ",".join(values)
        self.dsn = make_dsn(**parameters)

    def connect(self, connect: Callable[[str], connection]) -> connection:
        """Connect; when a host's time is up, try again without that host.

        libpq goes through the hosts itself, and judges by itself after which
        errors to go on. It tries those anew that it has tried before: which ones
        these were depends on ``target_session_attrs``, ``load_balance_hosts``.
        """
        while True:
            try:
                return connect(self.dsn)
            except ConnectTimeout as ex:
                silent = self._silent_host(ex)
                self._errors += f"{silent.error_prefix}timeout expired\n"
            except psycopg2.OperationalError as ex:
                ex.args = (self._errors + self._completed(str(ex)),)
                raise
            self._use([host for host in self._hosts if host is not silent])

    def _silent_host(self, timeout: ConnectTimeout) -> _Host:
        """Return the host whose time was up."""
        here = [
            host
            for host in self._hosts
            if host.host in ("", timeout.host)
            and int(host.port or DEFAULT_PORT) == timeout.port
        ]
        # Of several addresses of one name it is the last one that libpq mentions.
        begun = [host for host in here if host.is_in(timeout.errors)]
        return (begun[-1:] or here or self._hosts)[0]

    def _completed(self, error: str) -> str:
        """Return *error* with the hosts added that failed before libpq's first wait.

        Why they did is lost: libpq forgets it when psycopg2 makes the connection
        attempt non-blocking.
        """
        if not any(host.is_in(error) for host in self._hosts):
            return error
        at_once = itertools.takewhile(lambda host: not host.is_in(error), self._hosts)
        lines = [f"{host.error_prefix}it failed at once\n" for host in at_once]
        return "".join(lines) + error
