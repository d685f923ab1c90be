"""A newcomer's shell: runs the commands of a page, and compares what they print."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

from pages import code_blocks
from services import free_port

SHOWN_PORT = "127.0.0.1:8000"
SERVERS = re.compile(
    r"(?:\w+=\S+ )*(?:gunicorn|uwsgi|celery .* worker|python -m gevent\.monkey"
    r"|python \w+_server\.py)\b"
)
# What takes the repository, not an installed psycogreen. `test_command_of_the_repository`
# holds what it names against what there is.
NOT_WALKED = [
    ("make demo", "takes minutes: test_examples.py runs the demo"),
    ("make test", "this is what runs now"),
    ("make lint", "CI runs it"),
    ("make docs", "CI runs it"),
    ("make bench", "takes 25 minutes: test_benchmarks.py runs a short one"),
    ("make faults", "takes minutes: tests/faults runs each of them"),
    (".venv/bin/pytest", "a selection of the tests that CI runs"),
]
# Ends what a command prints, with its status.
END = "--- status "


@dataclass
class Command:
    """A command of a page, with the lines that the page shows under it."""

    prompt: str
    text: str
    shown: list[str] = field(default_factory=list)

    @property
    def not_walked(self):
        """Why the walk does not run it, or ``None``."""
        if self.prompt == "#":
            return "takes root's rights"
        reasons = (reason for words, reason in NOT_WALKED if words in self.text)
        return next(reasons, None)

    @property
    def serves(self):
        """Whether it runs until it is told to end."""
        return SERVERS.match(self.text) is not None

    @property
    def statuses(self):
        """The exit statuses that the page implies."""
        if self.shown:
            blocking = any(line.startswith("BLOCKING") for line in self.shown)
            return (1,) if blocking else (0,)
        # Either verdict is one, of an application that the page does not show.
        return (0, 1) if "psycogreen check" in self.text else (0,)


def commands(path):
    """Return the commands of a page, in the order in which they are read."""
    found = []
    for block in code_blocks(path, "console"):
        continued = False
        for line in block.rstrip().splitlines():
            if continued:
                found[-1].text += "\n" + line
            elif line[:2] in ("$ ", "# "):
                found.append(Command(line[0], line[2:]))
            else:
                found[-1].shown.append(line)
                continue
            continued = line.endswith("\\")
    return found


def pattern(line):
    """Return what a printed line has to match: the shown one, with other figures."""
    if line.startswith("  database"):
        return r"  database .*"  # the reader's own
    figure = r"\d+(?:\.\d+)*"
    parts = re.split(rf"({figure}|\.\.\.)", line.rstrip())
    replaced = {"...": ".*"}
    return "".join(
        replaced.get(part, figure) if n % 2 else re.escape(part)
        for n, part in enumerate(parts)
    )


def even(line):
    """Return a line with one space where there are several: columns differ in width."""
    return re.sub(r"(?<=\S) +", " ", line.rstrip())


def assert_shown(shown, printed):
    """Assert that what was printed is what the page shows, but for the figures."""
    expected = "\n".join(pattern(even(line)) for line in shown)
    printed = "\n".join(even(line) for line in printed)
    assert re.fullmatch(expected, printed), (
        f"the page shows\n{chr(10).join(shown)}\nprinted was\n{printed}"
    )


class Shell:
    """A shell in an empty folder; a context manager, which ends all that it started."""

    def __init__(self, folder, env, replaced=None):
        """Start it in *folder*; *replaced* are the names that a reader replaces."""
        self._folder = folder
        self._port = free_port()
        # Into a pipe curl writes its progress, which a terminal does not get.
        (folder / ".curlrc").write_text("silent\nshow-error\n")
        self._replaced = {SHOWN_PORT: f"127.0.0.1:{self._port}", **(replaced or {})}
        self._server = None
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            env={
                **env,
                "CURL_HOME": str(folder),
                "GUNICORN_CMD_ARGS": f"--bind=127.0.0.1:{self._port}",
                "PORT": str(self._port),
            },
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def __enter__(self):
        """Return itself."""
        return self

    def __exit__(self, *exc):
        """Kill what is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._bash.pid, signal.SIGKILL)
        self._bash.stdin.close()
        self._bash.stdout.close()
        self._bash.wait()

    def run(self, command):
        """Run a command of a page; assert that it goes as the page shows."""
        if command.serves:
            self.stop_server()
            self._serve(command)
            return
        status, printed = self.do(command.text)
        text = "\n".join(printed)
        assert status in command.statuses, f"$ {command.text}\n{text}\nstatus {status}"
        if command.shown:
            assert_shown(command.shown, printed)

    def do(self, text):
        """Run *text*, in the shell itself; return its status and what it prints."""
        self._write(
            f"{{ {self._with_names(text)}\n}} </dev/null; status=$?; echo;"
            f" echo '{END}'$status"
        )
        with self._limit():
            return self._read(text)

    def _read(self, text):
        printed = []
        for line in self._bash.stdout:
            if line.startswith(END):
                # The line break before the status is not the command's.
                if printed and not printed[-1]:
                    printed.pop()
                return int(line.removeprefix(END)), printed
            printed.append(line.rstrip("\n"))
        msg = f"the shell ended with $ {text}: {printed}"
        raise AssertionError(msg)

    def get(self, path="/"):
        """Return what the server answers, as text."""
        with urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=60) as response:
            return response.read().decode()

    @property
    def log(self):
        """What the server has printed."""
        log = self._folder / "server.log"
        return log.read_text() if log.exists() else ""  # the shell makes it

    def await_log(self, text, timeout=60):
        """Wait until the server has printed *text*."""
        self._await(lambda: text in self.log, timeout)

    def stop_server(self):
        """End the server with SIGTERM; assert that it ends in good order."""
        if self._server is None:
            return
        command, pid = self._server
        self._server = None
        status, _ = self.do(f"kill {pid}; wait {pid}")
        # A program without a handler of signals ends by the signal itself.
        ended = (0, 128 + signal.SIGTERM) if "python" in command.text else (0,)
        assert status in ended, f"$ {command.text}\n{self.log}\nstatus {status}"

    @contextlib.contextmanager
    def _limit(self, seconds=540):
        """Kill everything after so many seconds, which ends the shell's output."""
        timer = threading.Timer(seconds, os.killpg, (self._bash.pid, signal.SIGKILL))
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _serve(self, command):
        text = self._with_names(command.text)
        # The shell may answer before the server's log is empty.
        (self._folder / "server.log").unlink(missing_ok=True)
        _, printed = self.do(f"{text} >{self._folder}/server.log 2>&1 & echo $!")
        self._server = command, int(printed[0])
        if command.text.startswith("celery"):
            self.await_log(" ready.")
        else:
            self._await(self._listening)
        for line in command.shown:
            self._await(lambda: re.search(pattern(line), self.log))  # noqa: B023

    def _listening(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def _await(self, condition, timeout=60):
        deadline = time.monotonic() + timeout
        command, pid = self._server
        while not condition():
            assert Path(f"/proc/{pid}").exists(), f"$ {command.text}\n{self.log}"
            assert time.monotonic() < deadline, f"$ {command.text}\n{self.log}"
            time.sleep(0.05)

    def _with_names(self, text):
        for shown, real in self._replaced.items():
            text = text.replace(shown, real)
        return text

    def _write(self, text):
        self._bash.stdin.write(text + "\n")
        self._bash.stdin.flush()


def environment(folder, wheels):
    """Return the variables of somebody who has nothing but Python, and a network.

    The wheel is what pip would find once it is published.
    """
    programs = folder / "bin"
    programs.mkdir()
    (programs / "python3").symlink_to(sys._base_executable)
    kept = ("HOME", "LANG", "SSL_CERT_FILE")
    env = {
        name: value
        for name, value in os.environ.items()
        if name in kept or name.startswith("PIP_")
    }
    found = " ".join([os.environ.get("PIP_FIND_LINKS", ""), str(wheels)]).strip()
    path = os.pathsep.join([str(programs), "/usr/local/bin", "/usr/bin", "/bin"])
    return {**env, "PATH": path, "PIP_FIND_LINKS": found}
