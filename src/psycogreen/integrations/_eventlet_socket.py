"""The sockets of the eventlet worker, where eventlet's own fall short."""

from __future__ import annotations

import os
import socket
import ssl
from typing import TYPE_CHECKING, Any, Protocol

from eventlet import Timeout, hubs, patcher, sleep
from eventlet.green.ssl import GreenSSLContext, GreenSSLSocket
from eventlet.greenio import GreenSocket

if TYPE_CHECKING:
    from gunicorn.sock import BaseSocket

# The one that does not wait with the hub, and that the monkey patch removes.
_select = patcher.original("select")

# The most bytes that sendfile(2) is asked to send at once.
_PIECE = 1 << 20


class _File(Protocol):
    def fileno(self) -> int: ...


class Client(GreenSocket):
    """The connection of a client."""

    def sendall(self, data: bytes, flags: int = 0) -> None:
        """Send all of *data*, without copying it.

        eventlet copies what is left after each piece that has gone out: for a
        large response to a slow client that stops the worker for seconds.
        """
        super().sendall(memoryview(data), flags)

    def sendfile(self, file: _File, offset: int = 0, count: int | None = None) -> int:
        """Send *count* bytes of *file* from *offset* on; return how many were sent.

        ``None`` is all of them. eventlet has no such method, and that of
        `socket.socket` refuses a non-blocking socket, which a green one is.
        """
        sent = 0
        while count is None or sent < count:
            size = _PIECE if count is None else min(count - sent, _PIECE)
            try:
                step = os.sendfile(self.fileno(), file.fileno(), offset + sent, size)
            except BlockingIOError:
                hubs.trampoline(self, write=True)
            else:
                if not step:
                    break
                sent += step
                sleep()  # the others' turn: a fast client never makes this one wait
        return sent


def green_listener(bound: BaseSocket) -> GreenSocket:
    """Return a green socket in place of *bound*, which gunicorn made in the arbiter."""
    descriptor = bound.sock.detach()
    return GreenSocket(bound.FAMILY, socket.SOCK_STREAM, fileno=descriptor)


def accept(listener: GreenSocket) -> tuple[Client, Any]:
    """Return the next client of *listener* and its address, without waiting.

    Raise `BlockingIOError` if there is none.
    """
    client, address = listener.fd.accept()
    # What still waits for a closed socket of the same number must not wake up.
    hubs.notify_opened(client.fileno())
    return Client(client), address


def is_readable(client: GreenSocket) -> bool:
    """Return whether *client* has sent something that is not read yet, or its end."""
    poll = _select.poll()
    poll.register(client, _select.POLLIN)
    return bool(poll.poll(0))


def encrypt(
    client: Client,
    context: ssl.SSLContext,
    timeout: float | None,
    suppress_ragged_eofs: bool,
) -> GreenSSLSocket:
    """Return *client*, whose descriptor it takes over, as the server's side of TLS.

    Raise `OSError` if the handshake fails or takes longer than *timeout* seconds;
    ``None`` is no limit.
    """
    # Not a method of the context: one that was made before the monkey patch, in
    # gunicorn's configuration, would give a socket that blocks.
    secure = GreenSSLContext.wrap_socket(
        context,
        client,
        server_side=True,
        do_handshake_on_connect=False,
        suppress_ragged_eofs=suppress_ragged_eofs,
    )
    try:
        with Timeout(timeout, TimeoutError("timed out")):
            secure.do_handshake()
    except BaseException:
        secure.close()
        raise
    return secure
