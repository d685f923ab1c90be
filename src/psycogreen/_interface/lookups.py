"""Look up host names off the loop; concurrent lookups of one name share one call.

Nothing is cached after a lookup: if a name gets another address, as in a failover by
DNS, the next attempt to connect finds it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from psycogreen._wait import forks, offload
from psycogreen._wait.offload import Call

if TYPE_CHECKING:
    from psycogreen._wait.native import SocketWait

GetAddrInfo = Callable[..., list[tuple[Any, ...]]]
Start = Callable[[Callable[[], None]], object]

_under_way: dict[object, Call[list[str]]] = {}


def look_up(
    host: str,
    getaddrinfo: GetAddrInfo,
    wait_socket: SocketWait,
    *,
    start: Start = offload.start,
    among: object = None,
) -> list[str]:
    """Return the addresses of *host*, in the order of *getaddrinfo*.

    *getaddrinfo* is called in a native thread, or in what *start* starts, unless a call
    for the same *host* and the same *among* is under way. Raise its exceptions:
    `OSError`, and `UnicodeError` if *host* cannot be a name.
    """
    key = among, host
    call = _under_way.get(key)
    if call is None:
        call = _under_way[key] = Call(lambda: _ask(key, getaddrinfo))
        try:
            start(call.run)
        except BaseException:
            _under_way.pop(key, None)
            raise
    return call.wait(wait_socket)


def addresses(host: str, getaddrinfo: GetAddrInfo) -> list[str]:
    """Return the addresses of *host*; blocks as *getaddrinfo* does."""
    found = getaddrinfo(host, None, socket.AF_UNSPEC, socket.SOCK_STREAM)
    return [_address(*address) for *_, address in found]


def _ask(key: tuple[object, str], getaddrinfo: GetAddrInfo) -> list[str]:
    try:
        return addresses(key[1], getaddrinfo)
    finally:
        _under_way.pop(key, None)


def _address(host: str, _port: int, _flow: int = 0, scope: int = 0) -> str:
    # A link-local address needs the network interface.
    return f"{host}%{scope}" if scope and "%" not in host else host


@forks.after_in_child
def _after_fork() -> None:
    """Forget the lookups, whose threads are the parent's."""
    _under_way.clear()
