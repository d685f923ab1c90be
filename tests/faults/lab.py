"""The lab: it does what the process under test cannot do or see itself.

The process under test writes a line of JSON to its standard output to call a method, and
reads the result from its standard input.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

import psycopg2
import tls
from conftest import HBA, make_role
from faults.proxy import Proxy

from psycogreen._check.postgres import Server, postgres

HERE = Path(__file__).parent
TIME_BOX = 120  # seconds for one fault, at all its points

SCHEMA = """
create table deferred (n int);
create function wait() returns trigger language plpgsql as
    'begin perform pg_sleep(current_setting(''fault.seconds'')::float); return null; end';
create constraint trigger wait after insert on deferred
    deferrable initially deferred for each row execute function wait();
create table copied (n int);
create trigger wait after insert on copied for each row execute function wait();
create table replicated (n int);
"""


# As many replications at once as there are points to try.
SETTINGS = {
    "wal_level": "logical",
    "max_replication_slots": "100",
    "max_wal_senders": "100",
}


@contextmanager
def open_lab(folder: Path) -> Iterator[Lab]:
    """Open a lab with a server of its own, with TLS if it can; use *folder* for files."""
    with postgres(hba=HBA, settings=SETTINGS) as server:
        make_role(server)
        root = None
        if tls.has_tls(server):
            root = tls.serve_tls(server, "localhost", folder)
        with Lab(server, root) as lab:
            yield lab


class Lab:
    """The servers, the proxies and the observer. A context manager."""

    def __init__(self, server: Server, root: Path | None) -> None:
        """Use *server*, in whose database tables are made.

        *root* is the file of its certificate's root; ``None`` if it has no TLS.
        """
        self.server = server
        self.root = root
        self._proxies: dict[int, Proxy] = {}
        self._processes: dict[object, subprocess.Popen[str]] = {}
        self._victim: Server | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Prepare the database, and the observer's connection."""
        self._conn = psycopg2.connect(self.server.dsn)
        self._stack.callback(self._conn.close)
        self._conn.autocommit = True
        self._cursor = self._conn.cursor()
        self._cursor.execute(SCHEMA)
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop what was started."""
        for process in self._processes.values():
            _kill(process)
        self._stack.close()

    def proxy(self) -> int:
        """Open a proxy to the server; return its port."""
        proxy = Proxy(self.server.port)
        self._proxies[proxy.port] = proxy
        return proxy.port

    def arm(self, port: int, action: str | None, boundary: int = 0) -> None:
        """Arm the proxy at *port*."""
        self._proxies[port].arm(action, boundary)

    def messages(self, port: int) -> int:
        """Return how many messages the proxy at *port* has passed on since armed."""
        return self._proxies[port].messages

    def close_proxies(self) -> None:
        """Close all proxies."""
        while self._proxies:
            self._proxies.popitem()[1].close()

    def active(self) -> int:
        """Return how many backends still work for the process under test."""
        self._cursor.execute(
            "select count(*) from pg_stat_activity"
            " where application_name = 'fault' and state = 'active'"
        )
        return int(self._cursor.fetchone()[0])

    def terminate(self, pid: int) -> None:
        """Terminate a backend."""
        self._cursor.execute("select pg_terminate_backend(%s)", (pid,))

    def suspend(self, pid: int) -> None:
        """Let a backend do nothing until it is resumed."""
        os.kill(pid, signal.SIGSTOP)

    def resume(self, pid: int) -> None:
        """Let a backend go on, if it has not ended."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def terminate_all(self) -> None:
        """Terminate what a fault has left at the server, and wait for its end."""
        leftover = "from pg_stat_activity where application_name = 'fault'"
        while True:
            self._cursor.execute(f"select pg_terminate_backend(pid) {leftover}")
            if not self._cursor.rowcount:
                return
            time.sleep(0.01)

    def victim(self) -> str:
        """Start another server, which can be stopped; return its connection string."""
        if not self._victim:
            self._victim = self._stack.enter_context(postgres())
            self._program = os.readlink(f"/proc/{self._victim.pid}/exe")
        return self._victim.dsn

    def stop_victim(self) -> None:
        """Begin to stop that server in immediate mode."""
        pid_file = Path(self._victim.data_directory, "postmaster.pid")
        os.kill(int(pid_file.read_text().split()[0]), signal.SIGQUIT)

    def start_victim(self) -> None:
        """Begin to start that server again, on the same port."""
        folder = Path(self._victim.data_directory)
        while (folder / "postmaster.pid").exists():
            time.sleep(0.01)
        owner = folder.stat()
        postmaster = subprocess.Popen(
            [self._program, "-D", folder, "-p", str(self._victim.port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=owner.st_uid,
            group=owner.st_gid,
            extra_groups=[] if os.geteuid() == 0 else None,
        )
        self._stack.callback(postmaster.wait)
        self._stack.callback(postmaster.send_signal, signal.SIGQUIT)

    def run(
        self, backend: str, fault: str, env: Mapping[str, str]
    ) -> dict[str, object]:
        """Return the report on *fault*, of a process of *backend* with these variables.

        The process goes through one fault after the other, until one of them violates a
        guarantee: the next one then meets a new process.
        """
        key = backend, frozenset(env.items())
        process = self._processes.pop(key, None) or self._start(backend, env)
        # SIGABRT: faulthandler then tells where it was.
        timer = threading.Timer(TIME_BOX, process.send_signal, [signal.SIGABRT])
        timer.start()
        try:
            report = self._serve(process, fault)
        finally:
            timer.cancel()
            self.close_proxies()
            self.terminate_all()
        if report["violations"]:
            _kill(process)
        else:
            self._processes[key] = process
        return report

    def _start(self, backend: str, env: Mapping[str, str]) -> subprocess.Popen[str]:
        """Start a process that tries faults."""
        command = [sys.executable, "-P", "-W", "error", "-X", "faulthandler"]
        return subprocess.Popen(
            [*command, str(HERE / "process.py"), backend],
            env={**os.environ, **env, "PSYCOGREEN_TEST_ROOT": str(self.root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _serve(self, process: subprocess.Popen[str], fault: str) -> dict[str, object]:
        """Let *process* try *fault*; answer what it asks for, and return its report."""
        _tell(process, fault)
        for line in process.stdout:
            message = json.loads(line)
            if "report" in message:
                return message["report"]
            name, *arguments = message["call"]
            _tell(process, json.dumps(getattr(self, name)(*arguments)))
        status = process.wait()
        end = "hangs" if status == -signal.SIGABRT else f"ends with status {status}"
        return {"points": 0, "violations": {f"the process {end}": 1}}


def _tell(process: subprocess.Popen[str], line: str) -> None:
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _kill(process: subprocess.Popen[str]) -> None:
    """End *process*, and wait for its end."""
    process.kill()
    with process:
        pass
