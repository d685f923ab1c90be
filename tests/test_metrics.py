"""psycogreen's metrics for Prometheus."""

import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from load import request, requests
from servers import ROOT, gunicorn

WORKER = ("-k", "psycogreen.integrations.gevent_worker.GeventWorker")


def figures(url):
    """Return the figures that are psycogreen's."""
    found = re.findall(r"^(psycogreen_\w+) (\S+)$", request(url).body, re.MULTILINE)
    return {name: float(value) for name, value in found}


def await_(condition):
    """Wait until the condition holds, and return its value."""
    deadline = time.monotonic() + 30
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


def assert_waiting(server, count, at_least):
    """Assert that *count* requests under way are seen, and their age."""
    with ThreadPoolExecutor(1) as pool:
        begin = time.monotonic()
        answers = pool.submit(requests, count, f"{server.url}/sleep/5.0")
        seen = await_(
            lambda: (
                (now := figures(f"{server.url}/metrics")).get("psycogreen_waiting", 0)
                >= count
                and now["psycogreen_longest_wait_seconds"] > at_least
                and now
            )
        )
        assert seen["psycogreen_waiting"] == count
        longest = time.monotonic() - begin
        assert seen["psycogreen_longest_wait_seconds"] < longest
        assert [answer.error for answer in answers.result()] == [None] * count


def test_one_worker(dsn):
    """One worker answers with its current figures."""
    env = {"DSN": dsn}
    with gunicorn("metrics_app:app", *WORKER, env=env) as server:
        url = f"{server.url}/metrics"
        assert figures(url) == {
            "psycogreen_waits_total": 0,
            "psycogreen_timed_out_total": 0,
            "psycogreen_cancelled_total": 0,
            "psycogreen_waiting": 0,
            "psycogreen_longest_wait_seconds": 0,
        }
        assert_waiting(server, 10, 0.2)
        after = figures(url)
        assert after["psycogreen_waits_total"] >= 20
        assert after["psycogreen_waiting"] == 0
        assert "# TYPE psycogreen_waits_total counter" in request(url).body


def test_several_workers(dsn, tmp_path):
    """Each of several workers answers for all of them."""
    env = {"DSN": dsn, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    conf = str(ROOT / "examples" / "metrics_conf.py")
    with gunicorn("metrics_app:app", "-c", conf, "--workers=2", env=env) as server:
        server.await_line("Booting worker", count=2)
        assert_waiting(server, 40, 1.1)
        await_(lambda: figures(f"{server.url}/metrics")["psycogreen_waiting"] == 0)
        total = figures(f"{server.url}/metrics")["psycogreen_waits_total"]
        assert total >= 80
        # Each worker writes to a file of its own, and each answers the same.
        assert len(list(tmp_path.glob("counter_*.db"))) == 2
        for answer in requests(10, f"{server.url}/metrics"):
            assert f"psycogreen_waits_total {total}" in answer.body


def test_registered_twice():
    """A second registration is refused, as prometheus_client refuses any."""
    from prometheus_client import CollectorRegistry

    from psycogreen.integrations import metrics

    registry = CollectorRegistry()
    metrics.register(registry)
    with pytest.raises(ValueError, match="Duplicated"):
        metrics.register(registry)


def test_written_twice(python, tmp_path):
    """A process that writes its figures already refuses to write them twice."""
    python(
        "from psycogreen.integrations import metrics\n"
        "metrics.register()\n"
        "try:\n"
        "    metrics.register()\n"
        "except ValueError as ex:\n"
        "    assert 'written in this process already' in str(ex)\n"
        "else:\n"
        "    raise AssertionError",
        PROMETHEUS_MULTIPROC_DIR=str(tmp_path),
    )


def test_folder_missing(python, tmp_path):
    """A missing folder raises an error; after it was made, the call succeeds."""
    python(
        "import os\n"
        "from psycogreen.integrations import metrics\n"
        "folder = os.environ['PROMETHEUS_MULTIPROC_DIR']\n"
        "try:\n"
        "    metrics.register()\n"
        "except OSError as ex:\n"
        "    assert folder in str(ex)\n"
        "else:\n"
        "    raise AssertionError\n"
        "os.mkdir(folder)\n"
        "metrics.register()\n"
        "assert len(os.listdir(folder)) == 3",
        PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "later"),
    )


def test_variable_in_lower_case(python, tmp_path):
    """The older name of prometheus_client's variable works too."""
    python(
        "import warnings\n"
        "from prometheus_client import REGISTRY\n"
        "warnings.simplefilter('ignore')  # of prometheus_client: an old name\n"
        "from psycogreen.integrations import metrics\n"
        "metrics.register()\n"
        "assert not any('psycogreen' in name for name in REGISTRY._names_to_collectors)",
        prometheus_multiproc_dir=str(tmp_path),
    )
    assert len(list(tmp_path.iterdir())) == 3


POOLS = """
import os
from functools import partial
import psycopg2
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from psycogreen.integrations import metrics
from psycogreen.pool import Pool, PoolTimeout

# Of one name: a full one that a request times out at, and one that has room.
connect = partial(psycopg2.connect, os.environ["DSN"])
full, free = (Pool(connect, name="p", min_size=0, max_size=n) for n in (1, 2))
loans = [full.get(), free.get()]
try:
    full.get(timeout=0)
except PoolTimeout:
    pass
EXPECTED = {"size": 2.0, "in_use": 2.0, "waiting": 0.0, "timed_out_total": 1.0}

def found():
    text = generate_latest(registry).decode()
    lines = [line.split() for line in text.splitlines() if line.startswith("psycogreen_pool")]
    by_name = dict(lines)
    assert len(by_name) == len(lines)
    return {name: float(by_name[f'psycogreen_pool_{name}{{pool="p"}}']) for name in EXPECTED}

registry = CollectorRegistry()
"""


def test_pools_of_one_name(python, dsn):
    """Pools of one name are added up."""
    python(
        POOLS + "metrics.register(registry)\nassert found() == EXPECTED, found()",
        DSN=dsn,
    )


def test_pools_of_one_name_written(python, dsn, tmp_path):
    """Where the figures are written again and again, they are added up, too."""
    python(
        POOLS + "MultiProcessCollector(registry)\n"
        "writer = metrics._Writer(1)\n"
        "for _ in range(3):\n"
        "    writer._write_or_log()\n"
        "assert found() == EXPECTED, found()",
        DSN=dsn,
        PROMETHEUS_MULTIPROC_DIR=str(tmp_path),
    )


WRITER = """
from gevent import monkey; monkey.patch_all()
import gevent, gevent.event, logging
from psycogreen.integrations import metrics
logging.basicConfig(format="%(message)s")
written = gevent.event.Event()
real = metrics.status
"""


def test_writing_goes_on_after_an_error(python, tmp_path):
    """An error of the writer is logged once, and the writer goes on."""
    output = python(
        WRITER + "outcomes = [OSError('disk full'), OSError('disk full'), None]\n"
        "def status():\n"
        "    if outcome := outcomes.pop(0):\n"
        "        raise outcome\n"
        "    outcomes.append(None)\n"
        "    written.set()\n"
        "    return real()\n"
        "metrics.status = status\n"
        "metrics.register(interval=0.01)\n"
        "assert written.wait(30)",
        PROMETHEUS_MULTIPROC_DIR=str(tmp_path),
    )
    assert output.count("psycogreen: cannot write the figures") == 1
    assert output.count("OSError: disk full") == 1


def test_writer_is_started_again(python, tmp_path):
    """register() starts a new writer after its greenlet was killed."""
    python(
        WRITER + "writers = []\n"
        "def status():\n"
        "    writers.append(gevent.getcurrent())\n"
        "    written.set()\n"
        "    return real()\n"
        "metrics.status = status\n"
        "for _ in range(2):\n"
        "    metrics.register(interval=0.01)\n"
        "    assert written.wait(30)\n"
        "    writers[-1].kill()\n"
        "    written.clear()\n",
        PROMETHEUS_MULTIPROC_DIR=str(tmp_path),
    )


@pytest.mark.parametrize("framework", ["gevent", "eventlet"])
def test_written_after_a_fork(python, tmp_path, framework):
    """A forked child does not go on writing, although it inherits the greenlet.

    It may register again, and its figures start at zero.
    """
    patch = {
        "gevent": "from gevent import monkey, sleep; monkey.patch_all()",
        "eventlet": "import eventlet; eventlet.monkey_patch(); sleep = eventlet.sleep",
    }
    output = python(
        f"{patch[framework]}\n"
        "import psycogreen; psycogreen.patch_psycopg()\n"
        "import os, psycopg2, warnings\n"
        "from psycogreen.integrations import metrics\n"
        "warnings.simplefilter('ignore')  # of the fork\n"
        "psycopg2.connect(os.environ['DSN']).close()\n"
        "metrics.register(interval=0.05)\n"
        "sleep(0.2)\n"
        "if not (pid := os.fork()):\n"
        "    sleep(0.2)\n"
        "    print(*os.listdir(os.environ['PROMETHEUS_MULTIPROC_DIR']), flush=True)\n"
        "    metrics.register(interval=0.05)\n"
        "    sleep(0.2)\n"
        "    os._exit(0)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0\n"
        "print(os.getpid(), pid)",
        PROMETHEUS_MULTIPROC_DIR=str(tmp_path),
    )
    written, pids = output.splitlines()
    parent, child = pids.split()
    kinds = ["counter", "gauge_livemax", "gauge_livesum"]
    assert sorted(written.split()) == [f"{kind}_{parent}.db" for kind in kinds]
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {f"{kind}_{pid}.db" for kind in kinds for pid in (parent, child)}
