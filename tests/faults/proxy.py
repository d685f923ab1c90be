"""A TCP proxy that understands PostgreSQL's messages and injects faults between them.

It lives in native threads, one for each connection, of a process that is not
monkey-patched.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

SSL_REQUEST = 80877103

TLS, TYPED, STARTUP, ANSWER = "TLS record", "message", "startup", "answer"


class Framing:
    """Tells where the messages begin and end that one connection exchanges."""

    def __init__(self) -> None:
        """Expect a startup packet."""
        self._client, self._server = STARTUP, TYPED

    def take(self, buffer: bytearray, *, from_client: bool) -> bytes:
        """Remove the first message from *buffer*; nothing if it is not complete."""
        kind = self._client if from_client else self._server
        length = _length(kind, buffer)
        if length is None or len(buffer) < length:
            return b""
        message = bytes(buffer[:length])
        del buffer[:length]
        self._learn(kind, message)
        return message

    def _learn(self, kind: str, message: bytes) -> None:
        """Know from *message* what comes after it."""
        if kind == STARTUP:
            [code] = struct.unpack("!4xi", message[:8])
            asks = code == SSL_REQUEST
            self._client, self._server = (STARTUP, ANSWER) if asks else (TYPED, TYPED)
        elif kind == ANSWER:
            encrypted = message == b"S"
            self._client, self._server = (TLS, TLS) if encrypted else (STARTUP, TYPED)


def _length(kind: str, buffer: bytearray) -> int | None:
    """Return the length of the message *buffer* begins with, if it can be known."""
    if kind == ANSWER:
        return 1
    if len(buffer) < 5:
        return None
    if kind == TLS:
        return 5 + int(struct.unpack("!3xH", buffer[:5])[0])
    if kind == STARTUP:
        return int(struct.unpack("!i", buffer[:4])[0])
    return 1 + int(struct.unpack("!xi", buffer[:5])[0])


class Proxy:
    """Passes messages on, up to a boundary between two of them; there it acts.

    A connection that comes after that meets the same fate at once: what has
    happened to the network has happened to all of it.
    """

    def __init__(self, port: int) -> None:
        """Listen for connections to the server at *port*, and pass everything on."""
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=300)
        self.port: int = self._listener.getsockname()[1]
        self._action: str | None = None
        self._boundary = 0
        self.closed = False
        self.messages = 0
        """How many messages have passed since `arm()`."""
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, action: str | None, boundary: int) -> None:
        """Do *action* after *boundary* more messages; ``None``: only count them."""
        self.messages = 0
        self._action, self._boundary = action, boundary

    def close(self) -> None:
        """End everything."""
        self.closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with (
            client,
            suppress(OSError),
            socket.create_connection(("127.0.0.1", self._server_port)) as server,
        ):
            _Link(self, client, server).run()

    def due(self) -> str | None:
        """Return the action to take before the next message, if any."""
        return self._action if self.messages >= self._boundary else None


class _Link:
    """One connection through the proxy."""

    def __init__(
        self, proxy: Proxy, client: socket.socket, server: socket.socket
    ) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._framing = Framing()
        self._pending = {client: bytearray(), server: bytearray()}
        for sock in client, server:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self) -> None:
        """Pass on what comes, until either side ends."""
        poll = select.poll()
        sides = {side.fileno(): side for side in (self._client, self._server)}
        for fd in sides:
            poll.register(fd, select.POLLIN)
        while not self._proxy.closed:
            action = self._proxy.due()
            # A cut waits for something to be cut.
            if action and action != "cut" and self._act(action):
                return
            # Not forever: the proxy may be armed or closed meanwhile.
            for fd, _ in poll.poll(50):
                data = sides[fd].recv(1 << 18)
                if not data:
                    return
                self._pending[sides[fd]] += data
                if self._pass_on(sides[fd]):
                    return

    def _pass_on(self, source: socket.socket) -> bool:
        """Pass on the messages that are complete; return whether it is the end."""
        target = self._server if source is self._client else self._client
        pending = self._pending[source]
        while message := self._framing.take(
            pending, from_client=source is self._client
        ):
            action = self._proxy.due()
            if action == "cut":
                target.sendall(message[: len(message) // 2])
            if action and self._act(action):
                return True
            # Counted first: who has read the last message knows the count.
            self._proxy.messages += 1
            if action == "delay":
                _dribble(message, target)
            else:
                target.sendall(message)
        return False

    def _act(self, action: str) -> bool:
        """Take *action*; return whether it is the connection's end."""
        actions: dict[str, Callable[[], bool]] = {
            "reset": self._reset,
            "cut": self._reset,
            "silence": self._keep_silent,
            "half-close": self._half_close,
            "stop": self._stop,
            "delay": lambda: False,
        }
        return actions[action]()

    def _reset(self) -> bool:
        """Let both sides see a reset, as when a firewall has forgotten them."""
        for sock in self._client, self._server:
            sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            sock.close()
        return True

    def _keep_silent(self) -> bool:
        """Take everything and pass nothing on, as when the cable is pulled."""
        while not self._proxy.closed:
            ready, _, _ = select.select([self._client, self._server], [], [], 0.05)
            if any(not sock.recv(1 << 18) for sock in ready):
                break
        return True

    def _half_close(self) -> bool:
        """Tell the client that nothing more will come, and go on to listen to it."""
        self._client.shutdown(socket.SHUT_WR)
        while not self._proxy.closed:
            ready, _, _ = select.select([self._client], [], [], 0.05)
            if ready and not self._client.recv(1 << 18):
                break
        return True

    def _stop(self) -> bool:
        """Read no more, until it is resumed or the client is gone."""
        poll = select.poll()
        poll.register(self._client, select.POLLRDHUP)
        while self._proxy.due() == "stop" and not self._proxy.closed:
            if poll.poll(50):
                return True
        return self._proxy.closed


def _dribble(message: bytes, target: socket.socket) -> None:
    """Send *message* late, in two parts."""
    middle = len(message) // 2
    for part in message[:middle], message[middle:]:
        if part:
            # The length of the wait is what is tested with.
            threading.Event().wait(0.005)
            target.sendall(part)
