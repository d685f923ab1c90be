"""psycogreen in real gunicorn processes."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from load import request, requests
from overlap import assert_at_once
from processes import await_
from servers import gunicorn

CONF = ("-c", "python:psycogreen.integrations.gunicorn_conf")
GEVENT_WORKER = ("-k", "psycogreen.integrations.gevent_worker.GeventWorker")

INSTALLED = r"\[(\d+)\] \[INFO\] psycogreen: gevent wait callback installed"
LEFT_ALONE = r"\[(\d+)\] \[WARNING\] psycogreen: no wait callback installed: (.*)"
BOOTING = r"\[(\d+)\] \[INFO\] Booting worker"

WAYS = {
    "configuration": ("-k", "gevent", *CONF),
    "worker": GEVENT_WORKER,
    "both": (*GEVENT_WORKER, *CONF),
    "pywsgi": ("-k", "gevent_pywsgi", *CONF),
    "derived worker": ("-k", "own_worker.Worker", *CONF),
}

POST_FORK_IMPORTED = "from psycogreen.integrations.gunicorn_conf import post_fork"
POST_FORK_CALLED = """
from psycogreen.integrations import gunicorn_conf

def post_fork(server, worker):
    gunicorn_conf.post_fork(server, worker)
    worker.log.info("my own post_fork")
"""
POST_FORK_REPLACED = f"""
{POST_FORK_IMPORTED}

def post_fork(server, worker):
    worker.log.info("my own post_fork")
"""
OWN_CONFIGURATIONS = {
    "imported": POST_FORK_IMPORTED,
    "called": POST_FORK_CALLED,
    "replaced": POST_FORK_REPLACED,
    "module imported": "import psycogreen.integrations.gunicorn_conf",
}


def pids(server, pattern):
    """Return the process ids, sorted, of the lines that match."""
    return sorted(match[1] for match in server.matches(pattern))


@pytest.fixture
def serve(dsn):
    """`servers.gunicorn`, with the database in its environment."""

    def serve(app, *options, **env):
        return gunicorn(app, *options, env={"DSN": dsn, **env})

    return serve


@pytest.mark.parametrize("way", WAYS)
def test_concurrent_requests(serve, way):
    """50 requests that wait 0.2 s each are served together, by one worker."""
    with serve("flask_app:app", *WAYS[way]) as server:
        requests(50, f"{server.url}/sleep/0.0")  # opens the connections
        results = requests(50, f"{server.url}/sleep/0.2")
        assert [result.error for result in results] == [None] * 50
        assert_at_once(results, one_by_one=10)
        assert len(pids(server, INSTALLED)) == 1


def test_without_psycogreen(serve):
    """Without psycogreen, 50 requests that query wait for each other."""
    with serve("flask_app:app", "-k", "gevent") as server:
        requests(10, f"{server.url}/sleep/0.0")
        results = requests(10, f"{server.url}/sleep/0.2")
        assert max(result.end for result in results) > 1.9


@pytest.mark.parametrize("way", ["configuration", "worker", "both"])
def test_two_workers(serve, way):
    """Each of two workers installs the callback once."""
    with serve("flask_app:app", *WAYS[way], "--workers=2") as server:
        server.await_line(INSTALLED, count=2)
        results = requests(50, f"{server.url}/sleep/0.2")
        assert [result.error for result in results] == [None] * 50
        assert pids(server, INSTALLED) == pids(server, BOOTING)


def test_reload(serve):
    """After SIGHUP each new worker installs the callback once."""
    with serve("status_app:app", *WAYS["both"], "--workers=2") as server:
        # A worker that has not booted yet misses the signal, until gunicorn repeats it.
        answered = set()
        while len(answered) < 2:
            answered.add(json.loads(request(server.url).body)["pid"])
        server.popen.send_signal(signal.SIGHUP)
        server.await_line(INSTALLED, count=4)
        server.await_line("Worker exiting", count=2)
        assert json.loads(request(server.url).body)["framework"] == "gevent"
        assert len(set(pids(server, INSTALLED))) == 4
        assert pids(server, INSTALLED) == pids(server, BOOTING)


def test_max_requests(serve):
    """Each new worker of max_requests installs the callback once."""
    options = (*WAYS["configuration"], "--max-requests=5")
    with serve("status_app:app", *options) as server:
        seen = set()
        while len(seen) < 4:
            answer = request(server.url)
            if not answer.error:  # the worker may have left with the request
                status = json.loads(answer.body)
                assert status["framework"] == "gevent"
                seen.add(status["pid"])
        assert pids(server, INSTALLED) == pids(server, BOOTING)


def test_graceful_stop(serve, active):
    """A worker that gets SIGTERM finishes the running query."""
    with serve("flask_app:app", *WAYS["configuration"]) as server:
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(request, f"{server.url}/sleep/2.25")
            await_(lambda: active("select pg_sleep(2.25)"))
            assert server.stop(signal.SIGTERM) == 0
        assert answer.result().error is None
        assert json.loads(answer.result().body) == {"slept": 2.25}


@pytest.mark.parametrize("worker", ["sync", "gthread", "tornado", "asgi"])
def test_blocking_workers(serve, worker):
    """In a worker that is not green psycopg2 blocks, and the log says so once."""
    if worker == "asgi":
        pytest.importorskip("gunicorn.workers.gasgi", reason="gunicorn is too old")
    app = "status_app:asgi_app" if worker == "asgi" else "status_app:app"
    with serve(app, "-k", worker, *CONF, "--workers=2") as server:
        lines = server.await_line(LEFT_ALONE, count=2)
        status = json.loads(request(server.url).body)
        assert (status["framework"], status["callback"]) == (None, None)
        assert pids(server, LEFT_ALONE) == pids(server, BOOTING)
        assert not server.matches(INSTALLED)
        name = {
            "sync": "SyncWorker",
            "gthread": "ThreadWorker",
            "tornado": "TornadoWorker",
            "asgi": "ASGIWorker",
        }[worker]
        assert all(line[2].startswith(f"{name} is not a gevent") for line in lines)
        remedy = (
            "-k gevent -c python:psycogreen.integrations.gunicorn_conf, "
            "or import that module in your own configuration"
        )
        assert all(line[2].endswith(remedy) for line in lines)


@pytest.mark.parametrize("conf", OWN_CONFIGURATIONS)
def test_own_configuration(serve, tmp_path, conf):
    """A configuration of one's own imports the module, with or without a post_fork."""
    path = tmp_path / "conf.py"
    hooks = OWN_CONFIGURATIONS[conf]
    path.write_text(f"{hooks}\nworkers = 2\nworker_class = 'gevent'\n")
    with serve("status_app:app", "-c", str(path)) as server:
        server.await_line(INSTALLED, count=2)
        assert pids(server, INSTALLED) == pids(server, BOOTING)
        assert json.loads(request(server.url).body)["framework"] == "gevent"
        if "my own" in hooks:
            own = r"\[(\d+)\] \[INFO\] my own post_fork"
            assert pids(server, own) == pids(server, BOOTING)
        server.popen.send_signal(signal.SIGHUP)
        server.await_line(INSTALLED, count=4)
        assert pids(server, INSTALLED) == pids(server, BOOTING)


def test_connections_of_an_own_post_fork(serve, tmp_path):
    """Connections that a worker's own post_fork opens are not taken for inherited."""
    path = tmp_path / "conf.py"
    path.write_text(
        "import os, psycopg2\n"
        "import psycogreen.integrations.gunicorn_conf\n"
        "worker_class = 'gevent'\n"
        "def post_fork(server, worker):\n"
        "    worker.connection = psycopg2.connect(os.environ['DSN'])\n"
    )
    with serve("status_app:app", "-c", str(path)) as server:
        server.await_line(INSTALLED)
        assert "WARNING" not in server.output


@pytest.mark.parametrize("way", ["configuration", "worker", "both"])
def test_preload(serve, way):
    """Connections that were opened before the fork cause a warning with their number."""
    options = (*WAYS[way], "--preload", "--workers=2")
    with serve("preloaded_app:app", *options) as server:
        server.await_line(INSTALLED, count=2)
        warning = (
            r"\[(\d+)\] \[WARNING\] psycogreen: .* before the fork: 2\. .*post_fork"
        )
        assert pids(server, warning) == pids(server, BOOTING)


PATCHING_CONF = """
from gevent import monkey; monkey.patch_all()
from psycogreen.integrations.gunicorn_conf import post_fork
worker_class = "gevent"
"""
LATE = r"\[(\d+)\] \[WARNING\] psycogreen: --preload has imported .* before gevent"
POOLS = r"\[(\d+)\] \[WARNING\] psycogreen: psycopg2 pools with a lock .*: 1\. "


@pytest.mark.parametrize("way", ["configuration", "worker", "both", "plugin"])
def test_preload_before_the_monkey_patch(serve, way):
    """Preloading before the monkey patch causes warnings about locks and pools."""
    options = WAYS.get(way, ("-k", "gevent"))
    env = {"PSYCOGREEN": "gevent"} if way == "plugin" else {}
    app = "preloaded_pool_app:app"
    with serve(app, *options, "--preload", "--workers=2", **env) as server:
        server.await_line(INSTALLED, count=2)
        assert pids(server, LATE) == pids(server, BOOTING)
        assert pids(server, POOLS) == pids(server, BOOTING)
        assert "put 'from gevent import monkey; monkey.patch_all()'" in server.output


@pytest.mark.parametrize("plugin", ["", "gevent"])
def test_preload_after_the_monkey_patch(serve, tmp_path, plugin):
    """If the configuration monkey-patches, a preloaded pool works without a warning."""
    path = tmp_path / "conf.py"
    path.write_text(PATCHING_CONF)
    options = ("-c", str(path), "--preload")
    with serve("preloaded_pool_app:app", *options, PSYCOGREEN=plugin) as server:
        results = requests(20, server.url)
        assert [result.error for result in results] == [None] * 20
        assert server.matches(INSTALLED)
        assert "WARNING" not in server.output


def test_preload_without_pools(serve):
    """A preloaded application without pools causes only the warning about locks."""
    with serve("status_app:app", *WAYS["configuration"], "--preload") as server:
        server.await_line(INSTALLED)
        assert server.matches(LATE)
        assert not server.matches(POOLS)
        assert not server.matches("before the fork")
    with serve("status_app:app", *WAYS["configuration"]) as server:
        server.await_line(INSTALLED)
        assert "WARNING" not in server.output


@pytest.mark.parametrize("app", ["status_app:app", "late_app:app"])
def test_blocking_gevent_worker(serve, app):
    """A gevent worker that psycopg2 blocks is warned of, with the remedy.

    So is one whose application imports psycopg2 with its first request.
    """
    with serve(app, "-k", "gevent") as server:
        assert request(server.url).error is None
        server.await_line(
            r"\[WARNING\] psycogreen: psycopg2 blocks this gevent worker .* start "
            r"gunicorn with -c python:psycogreen\.integrations\.gunicorn_conf"
        )


def test_preload_in_a_blocking_worker(serve):
    """A worker that is not green also warns about shared connections."""
    with serve("preloaded_app:app", *CONF, "--preload") as server:
        server.await_line(LEFT_ALONE)
        server.await_line(r"WARNING.* before the fork: 2\.")


def test_conflict(dsn, tmp_path):
    """A worker with another wait callback does not boot, and gives the reason."""
    path = tmp_path / "conf.py"
    path.write_text(
        "import psycopg2.extras\n"
        "from psycogreen.integrations import gunicorn_conf\n"
        "def post_fork(server, worker):\n"
        "    psycopg2.extensions.set_wait_callback(psycopg2.extras.wait_select)\n"
        "    gunicorn_conf.post_fork(server, worker)\n"
    )
    with gunicorn("status_app:app", "-k", "gevent", "-c", str(path)) as server:
        assert server.wait() == 3  # gunicorn: a worker failed to boot
        assert "PatchConflict" in server.output
        assert "psycopg2.extras.wait_select" in server.output
