"""``python -m psycogreen check -- ...``: the verdict on a real server's worker."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
from conftest import TESTS, environment
from processes import await_
from servers import ROOT
from uwsgi_builds import ENGINES

CHECK = (sys.executable, "-P", "-m", "psycogreen", "check")
# Long enough for the verdict not to depend on the machine's load.
QUICK = ("--queries=2", "--seconds=1")

GUNICORN = ("gunicorn", "-b", "127.0.0.1:0", "status_app:app")
CONF = "python:psycogreen.integrations.gunicorn_conf"
GUNICORN_PLUGIN = ("-c", CONF)
INSTEAD = ", or import that module in your own configuration"
CELERY = ("celery", "-A", "celery_app", "worker", "-c", "4")
CELERY_PLUGIN = ("-I", "psycogreen.integrations.celery")
UWSGI = ("--http-socket=127.0.0.1:0", "--module=status_app:app")
UWSGI_GEVENT = ("--gevent=10", "--gevent-early-monkey-patch")
UWSGI_PLUGIN = ("--import=psycogreen.integrations.uwsgi",)


@pytest.fixture
def start(server):
    """Start ``check`` with a server's command, in a process of its own."""
    env = environment(server)
    env["PYTHONPATH"] += f":{TESTS / 'apps'}"
    # There is no such broker: no worker must ask it for tasks.
    env["REDIS_URL"] = "redis://127.0.0.1:1"

    def start(*command, options=(server.dsn, *QUICK), **more):
        return subprocess.Popen(
            [*CHECK, *options, "--", *command],
            env={**os.environ, **env, **more},
            cwd=ROOT / "tests" / "apps",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def check(start):
    """Run it to its end; return the status, and what is on both outputs."""

    def check(*command, **options):
        with start(*command, **options) as process:
            output, errors = process.communicate(timeout=120)
        return process.returncode, output, errors

    return check


@dataclass
class Verdict:
    """What is expected of a server's worker."""

    command: tuple[str, ...]
    worker: str
    codes: list[str] = field(default_factory=list)
    remedy: str = ""


SERVERS = {
    "gunicorn gevent": Verdict(
        (*GUNICORN, "-k", "gevent", *GUNICORN_PLUGIN), "gunicorn's GeventWorker"
    ),
    "gunicorn gevent, without psycogreen": Verdict(
        (*GUNICORN, "-k", "gevent"),
        "gunicorn's GeventWorker",
        ["wait-callback-missing"],
        f"start gunicorn with -c {CONF}{INSTEAD}",
    ),
    "gunicorn sync": Verdict(
        (*GUNICORN, *GUNICORN_PLUGIN),
        "gunicorn's SyncWorker",
        ["worker-not-green"],
        f"start gunicorn with -k gevent -c {CONF}{INSTEAD}",
    ),
    "gunicorn gthread": Verdict(
        (*GUNICORN, "-k", "gthread"),
        "gunicorn's ThreadWorker",
        ["worker-not-green"],
        f"start gunicorn with -k gevent -c {CONF}{INSTEAD}",
    ),
    "gunicorn eventlet": Verdict(
        (
            *GUNICORN,
            "-k",
            "psycogreen.integrations.eventlet_worker.EventletWorker",
        ),
        "gunicorn's EventletWorker",
    ),
    "Celery gevent": Verdict(
        (*CELERY, "-P", "gevent", *CELERY_PLUGIN), "Celery's gevent pool"
    ),
    "Celery gevent, without psycogreen": Verdict(
        (*CELERY, "-P", "gevent"),
        "Celery's gevent pool",
        ["wait-callback-missing"],
        "start Celery with -I psycogreen.integrations.celery",
    ),
    "Celery prefork": Verdict(
        (*CELERY, *CELERY_PLUGIN),
        "Celery's prefork pool",
        ["worker-not-green"],
        "start Celery with -P gevent -I psycogreen.integrations.celery",
    ),
    "Celery eventlet": Verdict(
        (*CELERY, "-P", "eventlet", *CELERY_PLUGIN), "Celery's eventlet pool"
    ),
}

UWSGI_ENGINES = {
    "gevent": Verdict((*UWSGI_GEVENT, *UWSGI_PLUGIN), "uWSGI's gevent engine"),
    "gevent, master and lazy-apps": Verdict(
        (*UWSGI_GEVENT, "--master", "--lazy-apps", *UWSGI_PLUGIN),
        "uWSGI's gevent engine",
    ),
    "gevent, without a monkey patch": Verdict(
        ("--gevent=10", *UWSGI_PLUGIN),
        "uWSGI's gevent engine",
        ["monkey-patch-missing"],
        "start uWSGI with --gevent-early-monkey-patch",
    ),
    "gevent, without psycogreen": Verdict(
        (*UWSGI_GEVENT, "--master"),
        "uWSGI's gevent engine",
        ["wait-callback-missing"],
        "start uWSGI with --import psycogreen.integrations.uwsgi",
    ),
    "greenlet": Verdict(
        (*ENGINES["greenlet"], "--master", *UWSGI_PLUGIN), "uWSGI's greenlet engine"
    ),
    "none": Verdict(
        ("--master", *UWSGI_PLUGIN),
        "uWSGI's worker without an async engine",
        ["worker-not-green"],
        "start uWSGI with --gevent 100 --gevent-early-monkey-patch "
        "--import psycogreen.integrations.uwsgi",
    ),
}


def assert_verdict(found, expected, dsn):
    """Assert that the command has said of the worker what is expected."""
    status, output, errors = found
    assert status == bool(expected.codes), errors
    report = json.loads(output)
    verdict = "BLOCKING" if expected.codes else "cooperative"
    assert report["verdict"] == verdict
    assert report["worker"].startswith(f"{expected.worker}, pid ")
    blocking = [found for found in report["findings"] if found["blocks"]]
    assert [finding["code"] for finding in blocking] == expected.codes
    assert [finding["remedy"] for finding in blocking] == [expected.remedy] * len(
        expected.codes
    )
    return report


@pytest.mark.parametrize("name", SERVERS)
def test_verdict(check, dsn, name):
    """The verdict on a worker of gunicorn or Celery comes from queries in it."""
    expected = SERVERS[name]
    found = check(*expected.command, options=(dsn, "--json", *QUICK))
    report = assert_verdict(found, expected, dsn)
    assert (report["wall_time"] is None) == ("worker-not-green" in expected.codes)


@pytest.mark.parametrize("name", UWSGI_ENGINES)
def test_verdict_on_uwsgi(check, find_uwsgi, dsn, name):
    """The verdict on a uWSGI worker comes from queries, or from its callback."""
    expected = UWSGI_ENGINES[name]
    command = (*find_uwsgi("pypi").command(None), *UWSGI, *expected.command)
    # Without psycogreen's integration gevent crashes in uWSGI on Python 3.15.
    env = {} if {*UWSGI_PLUGIN} <= {*command} else {"GEVENT_TRACK_GREENLET_TREE": "0"}
    found = check(*command, options=(dsn, "--json", *QUICK), **env)
    report = assert_verdict(found, expected, dsn)
    assert (report["wall_time"] is not None) == ("gevent" in expected.worker)


def test_in_words(check, dsn):
    """The first line of the text has the verdict, the last lines cause and remedy."""
    status, output, errors = check(*GUNICORN, "-k", "gevent")
    assert status == 1
    first, worker, *_ = output.splitlines()
    assert first.startswith(
        "BLOCKING: wait callback missing, 2 concurrent queries of 1 s "
    )
    assert worker.startswith("  worker           gunicorn's GeventWorker, pid ")
    assert output.splitlines()[-3:] == [
        "problem: wait callback missing: psycopg2 stops the loop with every query",
        f"remedy: start gunicorn with -c {CONF}, or",
        "  import that module in your own configuration",
    ]
    assert errors.splitlines()[:2] == [
        "psycogreen: starting gunicorn",
        "psycogreen: opening 2 connections",
    ]


def test_server_that_ends(check, tmp_path):
    """If the server does not start, the last lines of its log are shown."""
    status, output, errors = check("gunicorn", "-b", "127.0.0.1:0", "no_such_app:app")
    assert (status, output) == (2, "")
    assert "cannot check: the server exited, or became a daemon, before" in errors
    assert "No module named 'no_such_app'" in errors


def test_database_that_is_not_there(check):
    """An error of the check in the worker is shown by the command."""
    options = ("host=127.0.0.1 port=1", *QUICK)
    status, output, errors = check(
        *GUNICORN, "-k", "gevent", *GUNICORN_PLUGIN, options=options
    )
    assert (status, output) == (2, "")
    assert "cannot check: OperationalError: " in errors
    assert "Connection refused" in errors


WRONG = {
    "no command": ((), (), "no command after --"),
    "no such program": (("no-such-program",), (), "'no-such-program' cannot be"),
    "options for this process": (GUNICORN, ("--framework=gevent",), "neither --app"),
    "no connection string": (GUNICORN, ("hots=x",), 'invalid connection option "hots"'),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(check, case):
    """Wrong arguments are refused in one line."""
    command, options, expected = WRONG[case]
    status, output, errors = check(*command, options=options)
    assert (status, output) == (2, "")
    assert expected in errors
    assert "Traceback" not in errors


def processes_with(value):
    """Return the processes that have *value* in their environment."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as variables:
                if value in variables.read():
                    found.append(int(pid))
        except (ProcessLookupError, FileNotFoundError, PermissionError):
            pass
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
@pytest.mark.parametrize("sig", [None, signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left(start, dsn, tmp_path, sig):
    """The server ends with the check, also if a signal ends the check."""
    mark = f"PSYCOGREEN_TEST_MARK={tmp_path}".encode()
    seconds = "1" if sig is None else "10"
    command = (*GUNICORN, "-k", "gevent", "-w", "2", *GUNICORN_PLUGIN)
    options = (dsn, f"--seconds={seconds}", "--queries=2")
    env = {"PSYCOGREEN_TEST_MARK": str(tmp_path)}
    with start(*command, options=options, **env) as process:
        if sig is not None:
            while "running 2 concurrent queries" not in process.stderr.readline():
                assert process.poll() is None
            assert len(processes_with(mark)) >= 3
            process.send_signal(sig)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == (0 if sig is None else 128 + sig)
    assert "Traceback" not in errors
    await_(lambda: not processes_with(mark))
