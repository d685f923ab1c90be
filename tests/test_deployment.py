"""The example files for systemd and docker: the command that they run, and its stop."""

import configparser
import json
import re
import shlex
import shutil
import subprocess
import threading
import time

import pytest
from conftest import ROOT
from load import request
from servers import gunicorn

UNIT = ROOT / "examples" / "green-app.service"
DOCKERFILE = ROOT / "examples" / "Dockerfile"


def of_systemd():
    """Return the arguments that the unit gives to gunicorn, and its section."""
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str
    unit.read(UNIT)
    service = unit["Service"]
    program, *arguments = shlex.split(service["ExecStart"])
    assert program.endswith("/venv/bin/gunicorn")
    return arguments, service


def of_docker():
    """Return the arguments that the container gives to gunicorn."""
    [command] = re.findall(r"^CMD (\[.*\])$", DOCKERFILE.read_text(), re.MULTILINE)
    program, *arguments = json.loads(command)
    assert program == "gunicorn"
    at = arguments.index("--bind")
    return arguments[:at] + arguments[at + 2 :]


each = pytest.mark.parametrize(
    "arguments", [of_systemd()[0], of_docker()], ids=["systemd", "docker"]
)


def serve(arguments, dsn, *more):
    """Run gunicorn with these arguments, and one worker."""
    *options, app = arguments
    assert app == "health_app:app"
    return gunicorn(app, *options, "--workers=1", *more, env={"DSN": dsn})


@each
def test_health(arguments, dsn):
    """A worker is alive and ready; without PostgreSQL it is alive and not ready."""
    with serve(arguments, dsn) as server:
        assert request(f"{server.url}/live").body == "alive\n"
        assert request(f"{server.url}/ready").body == "ready\n"
    with serve(arguments, "host=127.0.0.1 port=1") as server:
        assert request(f"{server.url}/live").body == "alive\n"
        assert "503" in request(f"{server.url}/ready").error


@each
def test_graceful_stop(arguments, dsn, active):
    """At SIGTERM the worker finishes a running query, and answers its request."""
    with serve(arguments, dsn) as server:
        answers = []
        client = threading.Thread(
            target=lambda: answers.append(request(f"{server.url}/sleep/2.5"))
        )
        client.start()
        await_active(active, "%pg_sleep(2.5%", 1)
        assert server.stop() == 0
        client.join()
        assert [answer.error for answer in answers] == [None]


def test_end_of_patience(dsn, active):
    """A request that takes longer than --graceful-timeout is cut off."""
    arguments, _ = of_systemd()
    with serve(arguments, dsn, "--graceful-timeout=1") as server:
        answers = []
        client = threading.Thread(
            target=lambda: answers.append(request(f"{server.url}/sleep/21.5"))
        )
        client.start()
        await_active(active, "%pg_sleep(21.5%", 1)
        server.stop()
        client.join()
        assert answers[0].error


def test_times():
    """The service and the container wait longer than gunicorn waits for its workers."""
    arguments, service = of_systemd()
    patience = int(arguments[arguments.index("--graceful-timeout") + 1])
    assert patience < int(service["TimeoutStopSec"])
    docker = of_docker()
    patience = int(docker[docker.index("--graceful-timeout") + 1])
    [stop] = re.findall(r"docker stop --time (\d+)", DOCKERFILE.read_text())
    assert patience < int(stop)


def test_unit_is_known_to_systemd(tmp_path):
    """Every line of the unit is one that systemd knows."""
    unit = tmp_path / UNIT.name
    # What the unit runs is not there: true is.
    text = UNIT.read_text().replace("/srv/green-app/venv/bin/gunicorn", "/bin/true")
    unit.write_text(text)
    sections = re.findall(r"^\[(\w+)\]$", text, re.MULTILINE)
    assert sections == ["Unit", "Service", "Install"]
    if verify := shutil.which("systemd-analyze"):
        assert complaints(verify, unit) == []
        unit.write_text(text.replace("KillMode", "KilMode"))
        assert complaints(verify, unit) != []


def complaints(verify, unit):
    """Return what systemd says about this unit, not about others of this machine."""
    result = subprocess.run(
        [verify, "verify", str(unit)], capture_output=True, text=True, check=False
    )
    return [line for line in result.stderr.splitlines() if unit.name in line]


def await_active(active, pattern, count):
    """Wait until so many queries like the pattern are running."""
    deadline = time.monotonic() + 30
    while active(pattern) != count:
        assert time.monotonic() < deadline
        time.sleep(0.02)
