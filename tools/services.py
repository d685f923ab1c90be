"""Real servers of other makers, for the tests: on 127.0.0.1, at a free port."""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections.abc import Iterator

from servers import Process


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_redis() -> str | None:
    """Return Redis's server program, if it is installed."""
    return shutil.which("redis-server")


@contextlib.contextmanager
def redis() -> Iterator[str]:
    """Run a Redis server that keeps nothing; tell its URL."""
    port = free_port()
    command = [find_redis() or "redis-server", "--port", str(port), "--save", ""]
    with Process(*command, "--bind", "127.0.0.1", "--dir", "/tmp") as process:
        process.await_line("Ready to accept connections")
        yield f"redis://127.0.0.1:{port}/0"
