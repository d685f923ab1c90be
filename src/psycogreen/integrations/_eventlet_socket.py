"""The eventlet worker's sockets: what eventlet's own lack or do slowly."""

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

# The original: it does not wait with the hub, and the monkey patch removes poll().
_select = patcher.original("select")

# The maximum number of bytes for each sendfile(2).
_PIECE = 1 << 20


class _File(Protocol):
    def fileno(self) -> int: ...


class Client(GreenSocket):
    """The connection of a client."""

    def sendall(self, data: bytes, flags: int = 0) -> None:
        """Send all of *data*, without copying it.

        eventlet copies the rest after each piece that it sends. For a large response
        to a slow client that blocks the worker for seconds.
        """
        super().sendall(memoryview(data), flags)

    def sendfile(self, file: _File, offset: int = 0, count: int | None = None) -> int:
        """Send *count* bytes of *file* from *offset* on; return how many were sent.

        ``None`` means all of them. eventlet has no such method, and that of
        `socket.socket` refuses a non-blocking socket, which a green socket is.
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
                sleep()  # let others run: a fast client would never make this one wait
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
    # A greenthread that waits for a closed socket of that number must not wake up.
    hubs.notify_opened(client.fileno())
    return Client(client), address


def is_readable(client: GreenSocket) -> bool:
    """Return whether *client* has unread data, or has closed the connection."""
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
    ``None`` means no limit.
    """
    # Not the context's own method: a context that gunicorn's configuration made before
    # the monkey patch returns a blocking socket.
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
