"""Start a server's own command, check one of its workers, and stop the server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from psycogreen._check.probe import SOCKET, Job

_STARTUP = str(Path(__file__).with_name("startup"))

_BOOT = 60.0  # seconds until a worker serves
_GRACE = 5.0  # seconds that a server has to exit before it is killed
_LOG_LINES = 15


class NoReport(Exception):
    """No worker has reported; the message gives the reason."""

    log = ""
    """The last lines that the server printed."""


def check_worker(
    command: Sequence[str], job: Job, say: Callable[[str], object]
) -> dict[str, Any]:
    """Start a server with *command*, and return what its first worker reports.

    The server is ended afterwards. *say* is called with each step. Raise `NoReport` if
    the server cannot be started, ends, has no worker after a minute, or the check in
    its worker fails.
    """
    with (
        tempfile.TemporaryDirectory(prefix="psycogreen-") as folder,
        socket.socket(socket.AF_UNIX) as listener,
        tempfile.TemporaryFile("w+", errors="replace") as log,
    ):
        path = str(Path(folder) / "check")
        listener.bind(path)
        listener.listen()
        say(f"starting {command[0]}")
        with _running(command, path, log) as server:
            try:
                worker = _accept(listener, server)
                listener.close()  # refuses the other workers, so that they can stop
                return _talk(worker, job, say)
            except NoReport as ex:
                ex.log = _end_of(log)
                raise


@contextmanager
def _running(
    command: Sequence[str], path: str, log: IO[str]
) -> Iterator[subprocess.Popen[str]]:
    """Run the server, with the probe prepared in each of its Python processes."""
    before = os.environ.get("PYTHONPATH")
    variables = {SOCKET: path, "PYTHONPATH": os.pathsep.join([_STARTUP, before or ""])}
    if not before:
        variables["PYTHONPATH"] = _STARTUP  # an empty entry would be the current folder
    try:
        server = subprocess.Popen(
            _completed(command),
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that all its processes can be killed
        )
    except OSError as ex:
        msg = f"{command[0]!r} cannot be started: {ex.strerror}"
        raise NoReport(msg) from ex
    try:
        yield server
    finally:
        _end(server)


def _completed(command: Sequence[str]) -> list[str]:
    """Return *command*; if it runs uWSGI, with the option that loads the probe."""
    program, *arguments = command
    # First in this environment, which may not be activated.
    path = [sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]
    found = shutil.which(program, path=os.pathsep.join(path)) or program
    if Path(program).name.startswith("uwsgi"):
        arguments += ["--import", "psycogreen._check.uwsgi_probe"]
    return [found, *arguments]


def _accept(listener: socket.socket, server: subprocess.Popen[str]) -> socket.socket:
    """Wait for a worker."""
    listener.settimeout(0.2)
    deadline = time.monotonic() + _BOOT
    while time.monotonic() < deadline:
        try:
            return listener.accept()[0]
        except TimeoutError:
            if _has_ended(server):
                msg = "the server exited, or became a daemon, before it had a worker"
                raise NoReport(msg) from None
    msg = (
        f"no worker after {_BOOT:g} s: is it a command of gunicorn, uWSGI or Celery? "
        "In any other server, call psycogreen.check()"
    )
    raise NoReport(msg)


def _talk(
    worker: socket.socket, job: Job, say: Callable[[str], object]
) -> dict[str, Any]:
    """Send the job to the worker, show its steps, and return its last message."""
    worker.settimeout(_BOOT + job.queries * job.seconds)
    try:
        with worker, worker.makefile("rw") as lines:
            lines.write(json.dumps(asdict(job)) + "\n")
            lines.flush()
            for line in lines:
                message: dict[str, Any] = json.loads(line)
                if "error" in message:
                    raise NoReport(message["error"])
                if "step" not in message:
                    return message
                say(message["step"])
    except OSError as ex:
        msg = f"the worker does not answer: {ex}"
        raise NoReport(msg) from ex
    msg = "the worker exited before it reported"
    raise NoReport(msg)


def _end(server: subprocess.Popen[str]) -> None:
    """Stop the server. SIGINT, since SIGTERM makes uWSGI reload."""
    os.kill(server.pid, signal.SIGINT)
    deadline = time.monotonic() + _GRACE
    while not _has_ended(server) and time.monotonic() < deadline:
        time.sleep(0.02)
    # Kill its children too. The session's id is not reused before the server is reaped.
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def _has_ended(server: subprocess.Popen[str]) -> bool:
    """Return whether the server has exited, without reaping it."""
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, server.pid, flags) is not None


def _end_of(log: IO[str]) -> str:
    log.seek(0)
    return "\n".join(log.read().splitlines()[-_LOG_LINES:])
