"""The eventlet worker: how it becomes green, and its log."""

import json
import re
import signal
import subprocess
import sys

import pytest
from environments import EVENTLET_WORKER
from load import request, requests
from overlap import assert_at_once
from servers import gunicorn

WORKER = ("-k", EVENTLET_WORKER)
CONF = ("-c", "python:psycogreen.integrations.gunicorn_conf")
INSTALLED = r"\[(\d+)\] \[INFO\] psycogreen: eventlet wait callback installed"
BOOTING = r"\[(\d+)\] \[INFO\] Booting worker"


@pytest.fixture
def serve(dsn):
    """`servers.gunicorn` with the eventlet worker, and a database."""

    def serve(app, *options, **env):
        return gunicorn(app, *WORKER, *options, env={"DSN": dsn, **env})

    return serve


def pids(server, pattern):
    """Return the process ids, sorted, of the lines that match."""
    return sorted(match[1] for match in server.matches(pattern))


@pytest.mark.parametrize("options", [(), CONF], ids=["worker", "both"])
def test_installed_once(serve, options):
    """Each worker installs the callback once, also after a reload."""
    with serve("status_app:app", *options, "--workers=2") as server:
        server.await_line(INSTALLED, count=2)
        server.popen.send_signal(signal.SIGHUP)
        server.await_line(INSTALLED, count=4)
        # Told so while they were becoming green. (gunicorn repeats it after 30 s.)
        server.await_line("Worker exiting", count=2, timeout=20)
        status = json.loads(request(server.url).body)
        assert status["callback"] == "psycogreen.eventlet.eventlet_wait_callback"
        assert status["monkey_patched"] is True
        assert len(set(pids(server, INSTALLED))) == 4
        assert pids(server, INSTALLED) == pids(server, BOOTING)


def test_everything_waits_cooperatively(serve):
    """All waits of a request let other requests run, and the log has no warning."""
    with serve("green_app:app") as server:
        answer = request(server.url)
        assert answer.error is None, server.output
        ticks = json.loads(answer.body)
        assert len(ticks) == 13
        # Of some 40 in 0.2 s; a wait that blocks would leave one at most.
        assert {name for name, count in ticks.items() if count < 2} == set()
        assert not server.matches("ERROR|Traceback|not greened"), server.output


CONF_THAT_TELLS_OF_THE_MASTER = """
from eventlet import patcher

def on_exit(server):
    server.log.info("patched in the master: %s", sorted(patcher.already_patched))
"""


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["", "preload"])
def test_master_is_left_alone(serve, tmp_path, options):
    """Nothing is monkey-patched in gunicorn's master."""
    path = tmp_path / "conf.py"
    path.write_text(CONF_THAT_TELLS_OF_THE_MASTER)
    with serve("status_app:app", "-c", str(path), *options) as server:
        assert json.loads(request(server.url).body)["monkey_patched"] is True
        assert server.stop() == 0
        assert server.matches(r"patched in the master: \[\]")


CONF_THAT_TELLS_THE_HUB = """
from eventlet import hubs

def post_worker_init(worker):
    hub = hubs.get_hub()
    worker.log.info("%s", f"hub: {type(hub).__module__}, {hub is inherited}")
"""


@pytest.mark.parametrize("hub", ["epolls", "poll", "selects", "asyncio"])
def test_hub_of_the_environment(serve, tmp_path, hub):
    """EVENTLET_HUB selects the hub, and 50 queries run concurrently on it."""
    path = tmp_path / "conf.py"
    path.write_text("inherited = None\n" + CONF_THAT_TELLS_THE_HUB)
    options = ("-c", str(path))
    with serve("flask_app:app", *options, EVENTLET_HUB=hub) as server:
        server.await_line(f"hub: eventlet.hubs.{hub}, False")
        requests(50, f"{server.url}/sleep/0.0")
        results = requests(50, f"{server.url}/sleep/0.2")
        assert [result.error for result in results] == [None] * 50
        assert_at_once(results, one_by_one=10)


@pytest.mark.parametrize(
    "made", ["hubs.get_hub()", "None"], ids=["made before the fork", "only chosen"]
)
def test_hub_of_the_program(serve, tmp_path, made):
    """Each worker makes its own hub of the class that use_hub() has selected."""
    path = tmp_path / "conf.py"
    path.write_text(
        f"from eventlet import hubs\nhubs.use_hub('poll')\ninherited = {made}\n"
        + CONF_THAT_TELLS_THE_HUB
    )
    with serve("flask_app:app", "-c", str(path), "--workers=2") as server:
        server.await_line("hub: eventlet.hubs.poll, False", count=2)
        results = requests(50, f"{server.url}/sleep/0.2")
        assert [result.error for result in results] == [None] * 50


def test_preload(serve):
    """A preloaded SQLAlchemy application works, and --preload causes a warning."""
    with serve("flask_app:app", "--preload") as server:
        # More than the pool has connections: some wait for one.
        results = requests(70, f"{server.url}/sleep/0.2")
        assert [result.error for result in results] == [None] * 70
        assert_at_once(results, one_by_one=14)
        warning = r"\[(\d+)\] \[WARNING\] psycogreen: --preload .* leave out --preload"
        assert pids(server, warning) == pids(server, BOOTING)
        assert not server.matches("ERROR|Traceback"), server.output


def test_preload_with_connections(serve):
    """Connections that were opened before the fork cause a warning."""
    with serve("preloaded_app:app", "--preload") as server:
        server.await_line(r"\[WARNING\] psycogreen: .* before the fork: 2\. ")


@pytest.mark.parametrize("workers", [1, 2])
def test_environ(serve, workers):
    """wsgi.multithread and wsgi.multiprocess are correct."""
    with serve("http_app:app", f"--workers={workers}") as server:
        told = request(f"{server.url}/told").body
        assert "wsgi.multithread=True\n" in told
        assert f"wsgi.multiprocess={workers > 1}\n" in told
        assert "wsgi.run_once=False\n" in told


def start_without_eventlet(path, code):
    """Run gunicorn to its end, with something else in eventlet's place."""
    (path / "eventlet.py").write_text(code)
    command = [sys.executable, "-P", "-m", "gunicorn", "-b", "127.0.0.1:0"]
    return subprocess.run(
        [*command, *WORKER, "status_app:app"],
        env={"PYTHONPATH": str(path)},
        cwd=path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("raise ModuleNotFoundError(name='eventlet')", "eventlet is not installed"),
        ("__version__ = '0.33.3'", "eventlet 0.33.3 is too old"),
    ],
    ids=["missing", "too old"],
)
def test_eventlet_missing(tmp_path, code, complaint):
    """Without eventlet, gunicorn exits before it starts a worker, with the remedy."""
    result = start_without_eventlet(tmp_path, code)
    assert result.returncode == 1
    remedy = r"psycogreen needs [\d.]+ or newer: pip install 'eventlet>=[\d.]+'"
    assert re.search(f"{complaint}; {remedy}", result.stdout), result.stdout
    assert "Booting worker" not in result.stdout
    assert "Traceback" not in result.stdout


def test_conflict(serve, tmp_path):
    """A worker with another wait callback does not boot, and gives the reason."""
    path = tmp_path / "conf.py"
    path.write_text(
        "import psycopg2.extras\n"
        "def post_fork(server, worker):\n"
        "    psycopg2.extensions.set_wait_callback(psycopg2.extras.wait_select)\n"
    )
    with serve("status_app:app", "-c", str(path)) as server:
        assert server.wait() == 3  # gunicorn: a worker failed to boot
        assert "PatchConflict" in server.output
        assert "psycopg2.extras.wait_select" in server.output
