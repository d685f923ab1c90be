"""Real servers of other makers, for the tests: on 127.0.0.1, at a free port."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from psycopg2.extensions import make_dsn, parse_dsn
from servers import Process


def free_port() -> int:
    """Return a port that is not in use.

    It is below the range from which Linux chooses ports for other sockets, so it stays free
    until the server listens there.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


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


def find_pgbouncer() -> str | None:
    """Return PgBouncer's program, if it is installed: Debian has it in /usr/sbin."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@contextlib.contextmanager
def pgbouncer(dsn: str, pool_mode: str, size: int) -> Iterator[str]:
    """Run PgBouncer before the server of *dsn*, with *size* connections to it.

    Tell the connection string that leads through it.
    """
    parameters = parse_dsn(dsn)
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="pgbouncer-", dir="/tmp") as folder:
        configuration = Path(folder) / "pgbouncer.ini"
        configuration.write_text(
            "[databases]\n"
            f"* = host={parameters['host']} port={parameters['port']}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\n"
            "unix_socket_dir =\nauth_type = trust\n"
            f"auth_file = {folder}/users\n"
            f"pool_mode = {pool_mode}\ndefault_pool_size = {size}\n"
            "max_client_conn = 500\n"
        )
        (Path(folder) / "users").write_text(f'"{parameters["user"]}" ""\n')
        # It refuses to run as root: let another user read what is here.
        Path(folder).chmod(0o755)
        user = ["--user", "nobody"] if os.geteuid() == 0 else []
        command = [find_pgbouncer() or "pgbouncer", *user, str(configuration)]
        with Process(*command) as process:
            process.await_line("process up")
            yield make_dsn(dsn, host="127.0.0.1", port=port)
