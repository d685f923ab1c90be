"""Put a load on a server, with wrk if it is installed, else with client.py."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers import HttpServer

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1}


@dataclass(frozen=True)
class Load:
    """How a server did under load."""

    requests: int
    rate: float
    """Requests answered in a second."""
    p99: float
    """The 99th percentile of the seconds that an answer took."""


def load(server: HttpServer, target: str, clients: int, seconds: float) -> Load:
    """Let *clients* request *target* repeatedly for *seconds*."""
    # wrk takes only whole seconds.
    if shutil.which("wrk") and seconds >= 1:
        return _wrk(server.url + target, clients, seconds)
    told = _client(server, target, clients, seconds)
    return Load(told["requests"], told["requests"] / told["wall"], told["p99"])


def at_once(server: HttpServer, target: str, clients: int) -> float:
    """Let each of *clients* request *target* once, all at the same time.

    Return the seconds from the first attempt to connect to the last answer.
    """
    return _client(server, target, clients, 0)["wall"]


def _client(
    server: HttpServer, target: str, clients: int, seconds: float
) -> dict[str, Any]:
    program = str(Path(__file__).with_name("client.py"))
    host, port = server.address
    arguments = [host, port, target, clients, seconds]
    return json.loads(_run(sys.executable, program, *map(str, arguments)))


def _wrk(url: str, clients: int, seconds: float) -> Load:
    options = [f"-c{clients}", "-t1", f"-d{seconds:.0f}s", "--latency"]
    text = _run("wrk", *options, url)
    if error := re.search(r"^ *(Non-2xx|Socket errors).*", text, re.MULTILINE):
        msg = f"wrk {url}: {error[0].strip()}"
        raise RuntimeError(msg)
    requests = re.search(r"(\d+) requests in", text)[1]
    rate = re.search(r"Requests/sec: +([\d.]+)", text)[1]
    p99, unit = re.search(r"99% +([\d.]+)(us|ms|s)", text).groups()
    return Load(int(requests), float(rate), float(p99) * _UNITS[unit])


def _run(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
