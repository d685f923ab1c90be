"""The names in the system's hosts file, which it finds without asking a name server.

Such a lookup takes a few microseconds, so it is made in place. A native thread for it
would cost a third of what a whole connection costs.
"""

from __future__ import annotations

import _socket
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

_HOSTS = "/etc/hosts"
_SERVICES = "/etc/nsswitch.conf"

_LARGEST = 32 * 1024
"""Bytes. The system reads the file for each lookup: at this size in 70 us."""


class _Version(NamedTuple):
    """What changes when a file does."""

    time: int
    size: int
    number: int


def has(host: str) -> bool:
    """Return whether the system's resolver takes *host* from the hosts file.

    ``False`` if the file is not the first place where the system looks (see
    nsswitch.conf(5)), if it is large, and if a file cannot be read. Changes of the files
    are seen at once.
    """
    try:
        names = _names(_version(_SERVICES), _version(_HOSTS))
    except OSError:
        return False
    # getaddrinfo() looks for the encoded form of other names.
    return host.isascii() and host.lower() in names


def _version(path: str) -> _Version:
    status = os.stat(path)
    return _Version(status.st_mtime_ns, status.st_size, status.st_ino)


@lru_cache(maxsize=1)
def _names(_services: _Version, hosts: _Version) -> frozenset[str]:
    """Return the names in the hosts file; none if it is large or not the first place.

    The versions are the key of the cache.
    """
    if hosts.size > _LARGEST or not _is_first(_read(_SERVICES)):
        return frozenset()
    lines = (line.partition("#")[0].split() for line in _read(_HOSTS).splitlines())
    return frozenset(
        name.lower()
        for address, *names in filter(None, lines)
        if _is_address(address)
        for name in names
    )


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="replace")


_FOR_HOSTS = re.compile(r"^[ \t]*hosts:[ \t]*(.*)", re.MULTILINE)
_FILES_FIRST = re.compile(r"files\b(?!\s*\[)")


def _is_first(services: str) -> bool:
    """Return whether the system looks into the hosts file first, and stops if it finds.

    An action in brackets might let it go on to the next service.
    """
    lines = _FOR_HOSTS.findall(services)
    return len(lines) == 1 and bool(_FILES_FIRST.match(lines[0]))


def _is_address(text: str) -> bool:
    """Return whether the system accepts *text* in the file; it ignores other lines."""
    try:
        _socket.inet_pton(_socket.AF_INET6 if ":" in text else _socket.AF_INET, text)
    except OSError:
        return False
    return True
