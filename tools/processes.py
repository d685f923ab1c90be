"""Processes as Linux sees them."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from servers import HttpServer


def worker_pid(server: HttpServer) -> int:
    """Return the process id of gunicorn's one worker."""
    [booting] = server.await_line(r"\[(\d+)\] \[INFO\] Booting worker")
    return int(booting[1])


def open_files(pid: int) -> int:
    """Return how many file descriptors a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def memory(pid: int) -> int:
    """Return the bytes of memory a process has now; forget its peak so far."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _status(pid, "VmRSS")


def peak_memory(pid: int) -> int:
    """Return the most bytes of memory a process has had."""
    return _status(pid, "VmHWM")


def cpu_time(pid: int) -> float:
    """Return the seconds that the processor has run a process, in user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status(pid: int, name: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024


def runs(pid: int) -> bool:
    """Return whether a process runs; one that has ended but is not reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def await_(condition: Callable[[], object], timeout: float = 30) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
