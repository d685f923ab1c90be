"""Server processes under observation: their output, their address, their end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from uwsgi_builds import ENGINES, Build

ROOT = Path(__file__).parents[1]


class Process:
    """A process whose output is kept and can be waited for.

    A context manager: what is left of the process and its children at the end
    of the block is killed.
    """

    def __init__(
        self, *command: str, env: Mapping[str, str] | None = None, cwd: Path = ROOT
    ) -> None:
        """Start *command*, with *env* added to this process's environment."""
        self.lines: list[str] = []
        self._more = threading.Condition()
        self._ended = False
        # A session of its own, so that its children can be killed with it.
        self.popen = subprocess.Popen(
            command,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.popen.stdout:
            with self._more:
                self.lines.append(line.rstrip("\n"))
                self._more.notify_all()
        with self._more:
            self._ended = True
            self._more.notify_all()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Kill what is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        self._reader.join(10)
        self.popen.stdout.close()

    @property
    def output(self) -> str:
        """Everything it has printed so far."""
        return "\n".join(self.lines)

    def matches(self, pattern: str) -> list[re.Match[str]]:
        """Return the lines printed so far that *pattern* is found in, as matches."""
        return [
            found for line in list(self.lines) if (found := re.search(pattern, line))
        ]

    def await_line(
        self, pattern: str, *, count: int = 1, timeout: float = 60
    ) -> list[re.Match[str]]:
        """Wait until *pattern* is found in *count* lines; return all its matches.

        Raise `AssertionError` with the output if the process ends before, or
        after *timeout* seconds.
        """
        deadline = time.monotonic() + timeout
        with self._more:
            while len(found := self.matches(pattern)) < count:
                left = deadline - time.monotonic()
                if self._ended or not self._more.wait(left):
                    state = "ended" if self._ended else f"ran for {timeout:g} s"
                    msg = f"{state} without {count} x {pattern!r}:\n{self.output}"
                    raise AssertionError(msg)
            return found

    def stop(self, sig: int = signal.SIGTERM, timeout: float = 60) -> int:
        """Send *sig*, wait for the end, and return the exit status."""
        self.popen.send_signal(sig)
        return self.wait(timeout)

    def wait(self, timeout: float = 60) -> int:
        """Wait for the end, and return the exit status."""
        status = self.popen.wait(timeout)
        self._reader.join(10)
        return status


class HttpServer(Process):
    """A process that serves HTTP, at `address`."""

    address: tuple[str, int]

    def await_listening(self) -> None:
        """Wait until it prints where it listens, as gunicorn does."""
        [listening] = self.await_line(r"Listening at: https?://([\d.]+):(\d+)")
        self.address = (listening[1], int(listening[2]))

    @property
    def url(self) -> str:
        """The server's URL, without a slash at the end."""
        host, port = self.address
        return f"http://{host}:{port}"


@contextlib.contextmanager
def gunicorn(
    app: str,
    *options: str,
    env: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> Iterator[HttpServer]:
    """Run gunicorn, with one worker unless *options* say otherwise.

    *app* is found in examples/, demo/ and tests/apps/.
    """
    # The package is to be the installed one, not that of the current directory:
    # -P keeps it out of sys.path, into which gunicorn then puts it.
    command = [python, "-P", "-m", "gunicorn", "--bind=127.0.0.1:0", *options, app]
    cwd = ROOT / "tests" / "apps"
    with tempfile.TemporaryDirectory() as folder:
        # Newer gunicorns have a control socket there. In the user's home, the default,
        # all servers would share it.
        variables = _variables({"XDG_RUNTIME_DIR": folder, **(env or {})})
        with HttpServer(*command, env=variables, cwd=cwd) as server:
            server.await_listening()
            yield server


@contextlib.contextmanager
def uwsgi(
    build: Build,
    engine: str | None,
    *options: str,
    env: Mapping[str, str] | None = None,
) -> Iterator[HttpServer]:
    """Run uWSGI, with the options of *engine* and psycogreen's integration.

    The *options* name the application, which is found in examples/, demo/ and
    tests/apps/. If one of them names a configuration file then all else is there.
    """
    command = [*build.command(engine), "--http-socket=127.0.0.1:0", *options]
    if not any(option.startswith("--ini") for option in options):
        command += ENGINES.get(engine, ())
        command += ["--disable-logging", "--import=psycogreen.integrations.uwsgi"]
    # uWSGI imports from the current directory first, and the package in the root
    # is not the installed one.
    with HttpServer(*command, env=_variables(env), cwd=ROOT / "tests") as server:
        [bound] = server.await_line(r"bound to TCP address ([\d.]+):(\d+)")
        server.address = (bound[1], int(bound[2]))
        server.await_line("spawned uWSGI worker 1 ")
        yield server


def _variables(env: Mapping[str, str] | None) -> dict[str, str]:
    """Return *env* with what makes the applications and the tools importable."""
    folders = [
        ROOT / "examples",
        ROOT / "demo",
        ROOT / "tests" / "apps",
        ROOT / "tools",
    ]
    return {"PYTHONPATH": os.pathsep.join(map(str, folders)), **(env or {})}
