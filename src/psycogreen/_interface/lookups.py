"""Look up host names off the loop; concurrent lookups of one name share one call.

Nothing is cached after a lookup: if a name gets another address, as in a failover by
DNS, the next attempt to connect finds it.
"""

from __future__ import annotations

# The C module below socket, which frameworks never patch.
import _socket

# getaddrinfo() encodes a name with this codec. Its import must not be the first lookup's.
import encodings.idna  # noqa: F401
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from psycogreen._interface import hosts_file
from psycogreen._wait import forks, offload
from psycogreen._wait.offload import Call, Start

if TYPE_CHECKING:
    from psycogreen._wait.native import SocketWait

Found = list[tuple[Any, ...]]
GetAddrInfo = Callable[..., Found]
Resolve = Callable[[str], list[str]]
"""Returns the addresses of a name. Raises `OSError` or `UnicodeError`."""

_STREAMS = None, socket.AF_UNSPEC, socket.SOCK_STREAM
"""The arguments of `getaddrinfo`: stream sockets of any family."""

_under_way: dict[object, Call[Found]] = {}


def look_up_by_system(host: str, wait_socket: SocketWait) -> list[str]:
    """Return the addresses of *host* as `look_up` does, from the system's resolver.

    A name in the hosts file is looked up in place: see `hosts_file`.
    """
    if hosts_file.has(host):
        return look_up_in_place(host)
    return look_up(host, _socket.getaddrinfo, wait_socket)


def look_up_in_place(host: str) -> list[str]:
    """Return the addresses of *host* from the system's resolver; blocks as long as that."""
    return _addresses(_socket.getaddrinfo(host, *_STREAMS))


def _start(function: Callable[[], None]) -> None:
    """Call *function* in a native thread, or in this one if no other can be started."""
    try:
        offload.start(function)
    except RuntimeError:
        function()


def look_up(
    host: str,
    getaddrinfo: GetAddrInfo,
    wait_socket: SocketWait,
    *,
    start: Start = _start,
    among: object = None,
) -> list[str]:
    """Return the addresses of *host*, in the order of *getaddrinfo*.

    *getaddrinfo* is called in a native thread, or in what *start* starts, unless a call
    for the same *host* and the same *among* is under way. Raise its exceptions:
    `OSError`, and `UnicodeError` if *host* cannot be a name.
    """
    key = among, host
    call = _under_way.get(key)
    begin = None
    # If a call has not begun, it may be this greenlet that has to begin it: the garbage
    # collector may run a destructor that connects, at any point.
    if call is None or call.is_done or not call.has_begun:
        # The thread does nothing else: Python code is slow in it, since its caches are
        # cold.
        call = _under_way[key] = Call(partial(getaddrinfo, host, *_STREAMS))
        begin = start
    try:
        return _addresses(call.wait(wait_socket, begin=begin))
    finally:
        # If this greenlet was interrupted, others may share the lookup until it is done.
        if (call.is_done or not call.has_begun) and _under_way.get(key) is call:
            del _under_way[key]
        del call  # see `Call`


def _addresses(found: Found) -> list[str]:
    return [_address(*address) for *_, address in found]


def _address(host: str, _port: int, _flow: int = 0, scope: int = 0) -> str:
    # A link-local address needs the network interface.
    return f"{host}%{scope}" if scope and "%" not in host else host


@forks.after_in_child
def _after_fork() -> None:
    """Forget the lookups, whose threads are the parent's."""
    _under_way.clear()
