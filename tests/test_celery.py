"""psycogreen in real Celery workers, with a real Redis server."""

import contextlib
import gc
import sys
import time

import pytest
from conftest import TESTS
from processes import await_
from servers import ROOT, Process
from services import find_redis, redis

pytest.importorskip("celery")

pytestmark = pytest.mark.skipif(
    not find_redis(), reason="redis-server is not installed: apt-get install it"
)

INSTALLED = r"psycogreen: (gevent|eventlet) wait callback installed"
LEFT_ALONE = r"psycogreen: no wait callback installed: celery\.concurrency\.(\w+) is"


@pytest.fixture(scope="module")
def redis_url():
    """A Redis server's URL."""
    with redis() as url:
        yield url


@pytest.fixture
def start(dsn, redis_url):
    """Start a worker of the example application."""
    with contextlib.ExitStack() as stack:

        def start(*options, app="celery_app", name="w1", **env):
            command = [sys.executable, "-P", "-m", "celery", "-A", app, "worker"]
            variables = {
                "DSN": dsn,
                "REDIS_URL": redis_url,
                "PYTHONPATH": f"{ROOT / 'examples'}:{TESTS / 'apps'}",
                **env,
            }
            arguments = ("-l", "info", "-n", f"{name}@%h", "--without-mingle")
            process = Process(*command, *arguments, *options, env=variables)
            return stack.enter_context(process)

        yield start


@pytest.fixture
def celery_app(dsn, redis_url, monkeypatch):
    """The example application, in this process, to send tasks."""
    monkeypatch.setenv("DSN", dsn)
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import celery_app

    yield celery_app
    gc.collect()  # results, which look for Redis when they go
    celery_app.app.close()
    del sys.modules["celery_app"]


def green(pool):
    """Return a worker's options, for that pool."""
    options = ("-P", pool, "-c", "100", "-I", "psycogreen.integrations.celery")
    return (*options, "--prefetch-multiplier=1")  # none takes all tasks


def succeeded(worker):
    """Return how many tasks a worker has done.

    The worker's log shows it. ``result.get()`` may take a minute: sometimes Celery's
    client misses Redis's message.
    """
    return len(worker.matches("Task .* succeeded"))


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_two_workers(start, celery_app, active, pool):
    """Two green workers run 200 tasks that wait 0.2 s each, many at the same time."""
    workers = [start(*green(pool), name=f"w{n}") for n in range(2)]
    for worker in workers:
        worker.await_line(r"w\d@\S+ ready")
    results = [celery_app.double.delay(n) for n in range(200)]
    at_once, deadline = set(), time.monotonic() + 120
    while sum(map(succeeded, workers)) < 200:
        at_once.add(active("select 2 * %"))
        assert time.monotonic() < deadline
        time.sleep(0.02)  # the workers need the processor more
    # One after the other they are two at most, one in each worker.
    assert max(at_once) > 5
    assert [result.result for result in results] == [2 * n for n in range(200)]
    for worker in workers:
        assert [line[1] for line in worker.matches(INSTALLED)] == [pool]
        assert succeeded(worker)  # both had a part
        assert not worker.matches("WARNING.*psycogreen|Traceback")


def test_without_psycogreen(start, celery_app):
    """Without psycogreen the tasks of a gevent worker wait for each other."""
    worker = start("-P", "gevent", "-c", "100")
    worker.await_line(r"w1@\S+ ready")
    begin = time.monotonic()
    results = [celery_app.double.delay(n) for n in range(20)]
    await_(lambda: succeeded(worker) == 20)
    assert time.monotonic() - begin > 3.9
    assert [result.result for result in results] == [2 * n for n in range(20)]


def test_time_limit(start, celery_app, active):
    """A task that reaches its time limit is interrupted, and its query cancelled."""
    worker = start(*green("gevent"), app="celery_slow")
    worker.await_line(r"w1@\S+ ready")
    celery_app.app.send_task("celery_slow.sleep_long", time_limit=1)
    await_(lambda: active("%a task%"))
    worker.await_line(r"ERROR.* Hard time limit \(1.*s\) exceeded")
    # The server has taken the request by now, and acts on it in a moment.
    await_(lambda: not active("%a task%"))


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_revoked(start, celery_app, active, pool):
    """A task that is revoked and terminated is interrupted, and its query cancelled."""
    worker = start(*green(pool), app="celery_slow")
    worker.await_line(r"w1@\S+ ready")
    task = celery_app.app.send_task("celery_slow.sleep_long")
    await_(lambda: active("%a task%"))
    celery_app.app.control.revoke(task.id, terminate=True)
    await_(lambda: not active("%a task%"))
    assert not succeeded(worker)


@pytest.mark.parametrize(
    "pool",
    [
        "prefork",
        pytest.param("threads", marks=pytest.mark.full),
        pytest.param("solo", marks=pytest.mark.full),
    ],
)
def test_blocking_pools(start, celery_app, pool):
    """With a pool that is not green psycopg2 blocks, and the log says so once."""
    module = "thread" if pool == "threads" else pool
    worker = start("-P", pool, "-c", "2", "-I", "psycogreen.integrations.celery")
    worker.await_line(r"w1@\S+ ready")
    result = celery_app.double.delay(21)
    await_(lambda: succeeded(worker) == 1)
    assert result.result == 42
    [line] = worker.matches(LEFT_ALONE)
    assert line[1] == module
    assert "WARNING" in line.string
    assert line.string.endswith("-P gevent -I psycogreen.integrations.celery")
    assert not worker.matches(INSTALLED)


def test_pool_from_the_configuration(start):
    """A pool that only the configuration names causes a warning: it is not patched."""
    worker = start(app="celery_configured")
    worker.await_line(INSTALLED)
    worker.await_line(r"WARNING.*gevent has not monkey-patched .*\(-P gevent\)")


def test_conflict(start):
    """A worker with another wait callback does not start, and gives the reason."""
    worker = start(
        "-P", "gevent", "-I", "foreign_callback,psycogreen.integrations.celery"
    )
    assert worker.wait() != 0
    assert worker.matches("^psycogreen: psycopg2 already waits with .*wait_select")
