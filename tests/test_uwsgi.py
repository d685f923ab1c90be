"""psycogreen in real uWSGI processes, with each engine."""

import json
import os
import random
import re
import signal
import subprocess
import textwrap
import time
from pathlib import Path

import load
import pytest
from load import request, request_all, requests
from overlap import assert_at_once
from pages import code_blocks
from servers import ROOT
from uwsgi_builds import OTHER_PYTHONS, UWSGI

INSTALLED = (
    r"psycogreen: (gevent|uwsgi) wait callback installed(?: \((\w+)\))?"
    r" in worker (\d+) \(pid: (\d+)\)"
)
LEFT_ALONE = (
    r"psycogreen: warning: no wait callback installed in worker (\d+) \(pid: (\d+)\), "
    r"psycopg2 (?:blocks as usual|is left as it is): (.*)"
)
SPAWNED = r"spawned uWSGI worker (\d+).*\((?:new )?pid: (\d+)"

ENGINES = ["gevent", "greenlet", "ugreen"]
OWN_ENGINES = ["greenlet", "ugreen"]
APP = "--module=uwsgi_app"

other_pythons = [pytest.param(each, marks=pytest.mark.full) for each in OTHER_PYTHONS]


def debian(*options):
    """Return the parameters for Debian's uWSGI, which a full run has."""
    reason = "it runs with Debian's Python"
    return pytest.param("debian", *options, marks=pytest.mark.full(reason=reason))


each_build = pytest.mark.parametrize("build", ["pypi", debian()])
each_engine = pytest.mark.parametrize("engine", ENGINES)
each_own_engine = pytest.mark.parametrize("engine", OWN_ENGINES)


def assert_alive(server):
    """Assert that no worker has died: each was started once, and is green."""
    assert len(server.matches(SPAWNED)) == 1, server.output
    assert len(server.matches(INSTALLED)) == 1, server.output


@pytest.fixture
def stress(request):
    """Make many requests that do not end in the order of their beginnings.

    Each must answer with its own token, and the worker's memory must not grow. A full run
    makes 5,000 requests, another run 1,200.
    """
    count, warm_up = (5000, 1000) if request.config.option.full else (1200, 600)

    def stress(server, path):
        urls = [
            f"{server.url}/{path}/{token}/{random.uniform(0, 0.05):.3f}"
            for token in range(count)
        ]
        results = request_all(urls[:warm_up], at_once=60)
        before = int(load.request(f"{server.url}/memory").body)
        results += request_all(urls[warm_up:], at_once=60)
        after = int(load.request(f"{server.url}/memory").body)
        wrong = [
            (token, result.error, result.body)
            for token, result in enumerate(results)
            if result.body != str(token)
        ]
        assert not wrong, f"{len(wrong)} wrong, such as {wrong[0]}\n{server.output}"
        assert after < before * 1.1
        assert_alive(server)

    return stress


@each_build
@each_engine
def test_concurrent_queries(serve_uwsgi, build, engine):
    """One worker serves 100 queries of 0.3 s concurrently."""
    with serve_uwsgi(build, engine, APP) as server:
        requests(100, f"{server.url}/plain/x/0.1")  # opens the connections
        for _ in range(3):
            results = requests(100, f"{server.url}/plain/x/0.3")
            assert [result.body for result in results] == ["x"] * 100
            assert_at_once(results, one_by_one=30)
        assert_alive(server)


@each_engine
def test_copy_and_large_objects(serve_uwsgi, engine):
    """COPY and large objects wait as queries do: requests are served together."""
    with serve_uwsgi("pypi", engine, APP) as server:
        urls = [f"{server.url}/copied/{token}/1" for token in range(30)]
        results = request_all(urls)
        assert [result.body for result in results] == [
            f"{token} 1000" for token in range(30)
        ]
        assert_at_once(results, one_by_one=30)
        assert_alive(server)


@each_build
@each_engine
def test_stress(serve_uwsgi, stress, build, engine):
    """Each of many concurrent requests gets its own answer."""
    with serve_uwsgi(build, engine, "--master", APP) as server:
        stress(server, "plain")


@each_build
@each_engine
def test_shared_connection(serve_uwsgi, build, engine):
    """Requests that share a connection take turns, and leave the others alone."""
    with serve_uwsgi(build, engine, APP) as server:
        urls = [f"{server.url}/shared/{token}/0.02" for token in range(40)]
        urls += [f"{server.url}/plain/{token}/0.02" for token in range(40, 60)]
        results = request_all(urls)
        assert [result.body for result in results] == list(map(str, range(60)))
        assert_alive(server)


@pytest.mark.parametrize("build", other_pythons)
@each_engine
def test_stress_on_other_pythons(serve_uwsgi, stress, build, engine):
    """On other Pythons, each of many concurrent requests gets its own answer."""
    with serve_uwsgi(build, engine, "--master", APP) as server:
        stress(server, "plain")


@each_build
@each_own_engine
def test_explicit_stress(serve_uwsgi, stress, build, engine):
    """Explicit waits for asynchronous connections give each request its own answer."""
    with serve_uwsgi(build, engine, "--master", APP) as server:
        stress(server, "explicit")


@pytest.mark.parametrize("build", ["pypi", debian(), *other_pythons])
@each_own_engine
def test_mixed_stress(serve_uwsgi, stress, build, engine):
    """Requests in all states that a switch must keep apart get their own answers.

    In except blocks, in generators, in deep recursion, in destructors, with
    context variables, with queries that fail; see MIX in the application.
    """
    with serve_uwsgi(build, engine, "--master", APP) as server:
        stress(server, "mixed")


@each_own_engine
def test_mixed_stress_with_garbage(serve_uwsgi, engine):
    """Garbage collections and native threads that query disturb no request."""
    with serve_uwsgi("pypi", engine, "--master", APP) as server:
        urls = [f"{server.url}/mixed/{token}/0.02" for token in range(600)]
        urls[::7] = [f"{server.url}/collect/{token}" for token in range(0, 600, 7)]
        urls[::11] = [
            f"{server.url}/thread/{token}/0.02" for token in range(0, 600, 11)
        ]
        results = request_all(urls, at_once=50)
        assert [result.body for result in results] == list(map(str, range(600)))
        assert_alive(server)


@pytest.mark.parametrize(
    ("build", "options"),
    [("pypi", ()), debian(()), debian(("--enable-threads",))],
)
@each_own_engine
def test_collect_while_suspended(serve_uwsgi, build, engine, options):
    """A garbage collection does not disturb 50 suspended requests."""
    with serve_uwsgi(build, engine, *options, APP) as server:
        requests(50, f"{server.url}/plain/x/0.1")
        urls = [f"{server.url}/mixed/{token}/1" for token in range(50)]
        urls += [f"{server.url}/collect/{token}" for token in range(50, 60)]
        results = request_all(urls)
        assert [result.body for result in results] == list(map(str, range(60)))
        assert_alive(server)


@pytest.mark.parametrize("build", ["pypi", *other_pythons])
@each_own_engine
def test_query_amid_a_wait(serve_uwsgi, build, engine):
    """A query in a signal handler or a destructor does not disturb a wait."""
    with serve_uwsgi(build, engine, APP) as server:
        request(f"{server.url}/alarm/x/0.0005")
        urls = [f"{server.url}/plain/{token}/0" for token in range(2000)]
        results = request_all(urls, at_once=20, timeout=20)
        wrong = [n for n, result in enumerate(results) if result.body != str(n)]
        assert not wrong
        assert int(request(f"{server.url}/count_alarms/x").body) > 100


@pytest.mark.parametrize(
    ("build", "options"), [("pypi", ()), debian(("--enable-threads",))]
)
@pytest.mark.parametrize("engine", ["gevent", "ugreen"])
def test_native_threads(serve_uwsgi, build, engine, options):
    """Native threads can query, during requests and without requests."""
    with serve_uwsgi(build, engine, *options, APP) as server:
        for token in "abc":
            request(f"{server.url}/thread/{token}/0.3")
        results = requests(20, f"{server.url}/plain/x/0.2")
        assert [result.body for result in results] == ["x"] * 20
        for token in "abc":
            await_body(f"{server.url}/thread_answer/{token}", token)
        assert_alive(server)


def await_body(url, body, timeout=20):
    """Wait until the answer is that."""
    deadline = time.monotonic() + timeout
    while request(url).body != body:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@each_build
@each_engine
def test_streamed(serve_uwsgi, build, engine):
    """Responses that query between their pieces are served concurrently."""
    with serve_uwsgi(build, engine, APP) as server:
        urls = [f"{server.url}/streamed/{token}/0.1" for token in range(60)]
        for _ in range(5):
            results = request_all(urls)
            assert [result.body for result in results] == [
                str(token) * 3 for token in range(60)
            ]
        assert_at_once(results, one_by_one=18)
        assert_alive(server)


@each_engine
def test_errors(serve_uwsgi, engine):
    """Requests that end in an error do not disturb others."""
    with serve_uwsgi("pypi", engine, APP) as server:
        urls = [
            f"{server.url}/{'plain' if token % 2 else 'error'}/{token}/0.1"
            for token in range(200)
        ]
        results = request_all(urls, at_once=60)
        assert [result.body for result in results[1::2]] == [
            str(token) for token in range(1, 200, 2)
        ]
        assert len(server.matches("RuntimeError: ")) == 100
        assert_alive(server)


@each_build
@each_own_engine
def test_timeout(serve_uwsgi, build, engine):
    """The callback's timeout holds, in uWSGI's whole seconds."""
    with serve_uwsgi(build, engine, APP) as server:
        urls = [
            *[f"{server.url}/limited/x/30/{limit}" for limit in (0, 0.3, 1.5)],
            *[f"{server.url}/limited/x/0.5/{limit}" for limit in (5, -1)],
        ]
        answers = [json.loads(result.body) for result in request_all(urls)]
        assert [answer["outcome"] for answer in answers] == [
            "wait timed out: PostgreSQL was silent for 0 seconds",
            "wait timed out: PostgreSQL was silent for 0.3 seconds",
            "wait timed out: PostgreSQL was silent for 1.5 seconds",
            "x",
            "x",
        ]
        taken = [answer["taken"] for answer in answers]
        assert all(t >= least for t, least in zip(taken, (0, 0.3, 1.5), strict=False))
        assert max(taken) < 25  # of 30


@pytest.mark.parametrize(
    "mode", ["", "--master", "--lazy-apps", "--master --lazy-apps"]
)
@each_engine
def test_processes(serve_uwsgi, engine, mode):
    """Each of three workers installs the callback once, and logs it."""
    options = [*mode.split(), "--processes=3", "--module=uwsgi_import_app"]
    with serve_uwsgi("pypi", engine, *options) as server:
        server.await_line(INSTALLED, count=3)
        results = requests(60, f"{server.url}/plain/x/0.3")
        assert [result.body for result in results] == ["x"] * 60
        installed = server.matches(INSTALLED)
        assert {line[1] for line in installed} == {
            "gevent" if engine == "gevent" else "uwsgi"
        }
        assert {line[2] for line in installed} == {
            None if engine == "gevent" else engine
        }
        assert sorted(line[3] for line in installed) == ["1", "2", "3"]
        spawned = [line[2] for line in server.matches(SPAWNED)]
        assert sorted(line[4] for line in installed) == sorted(spawned)
        # One for each process that has loaded the application.
        assert server.matches("queried at import: 1")
        seen = {json.loads(request(f"{server.url}/status").body)["engine"]}
        assert seen == {engine}


@pytest.mark.parametrize("lazy", [(), ("--lazy-apps",)])
@each_engine
def test_mule_and_spooler(serve_uwsgi, tmp_path, engine, lazy):
    """A mule and a spooler can query, and install no callback."""
    app = ROOT / "tests" / "apps"
    options = [
        "--master",
        *lazy,
        f"--mule={app / 'uwsgi_mule.py'}",
        f"--spooler={tmp_path}",
        "--spooler-python-import=uwsgi_spooler",
        APP,
    ]
    with serve_uwsgi("pypi", engine, *options) as server:
        server.await_line("mule queried: 1, callback: None")
        request(f"{server.url}/spool/x")
        server.await_line("spooler queried: 1, callback: None")
        results = requests(20, f"{server.url}/plain/x/0.2")
        assert [result.body for result in results] == ["x"] * 20
        assert_alive(server)


@each_engine
def test_detected(serve_uwsgi, engine):
    """Without a name, patch_psycopg() installs the engine's callback."""
    with serve_uwsgi("pypi", engine, APP) as server:
        status = json.loads(request(f"{server.url}/detect").body)
        framework = "gevent" if engine == "gevent" else "uwsgi"
        assert (status["framework"], status["engine"]) == (framework, engine)
        assert request(f"{server.url}/plain/x/0.1").body == "x"


@each_engine
def test_own_hook(serve_uwsgi, engine):
    """An application's own post-fork functions are called too."""
    with serve_uwsgi("pypi", engine, "--master", "--module=uwsgi_hook_app") as server:
        server.await_line(INSTALLED)
        server.await_line("my own post-fork function")


@each_engine
def test_respawn(serve_uwsgi, engine):
    """A respawned worker installs the callback."""
    with serve_uwsgi("pypi", engine, "--master", APP) as server:
        [first] = server.await_line(INSTALLED)
        os.kill(int(first[4]), signal.SIGKILL)
        _, second = server.await_line(INSTALLED, count=2)
        assert json.loads(request(f"{server.url}/status").body)["engine"] == engine
        assert first[4] != second[4]


UNSERVED = {
    "processes": ("pypi", None, (), "without an async engine"),
    "threads": ("pypi", None, ("--threads=4",), "without an async engine"),
    "async": ("pypi", None, ("--async=10",), "no coroutine engine"),
    "one core": ("pypi", None, ("--ugreen",), "without an async engine"),
    "asyncio": debian("asyncio", ("--asyncio=10", "--greenlet"), "'asyncio'"),
    "tornado": debian("tornado", ("--tornado=10", "--greenlet"), "'tornado'"),
}


@pytest.mark.parametrize(
    ("build", "engine", "options", "reason"), UNSERVED.values(), ids=UNSERVED.keys()
)
def test_unserved_engines(serve_uwsgi, build, engine, options, reason):
    """Without a usable engine queries block, and the log gives the reason once."""
    with serve_uwsgi(build, engine, "--master", *options, APP) as server:
        [line] = server.await_line(LEFT_ALONE)
        assert "psycopg2 blocks as usual: " in line[0]
        assert reason in line[3]
        assert "--gevent N, --async N --greenlet or --async N --ugreen" in line[3]
        assert request(f"{server.url}/plain/x/0.1").body == "x"
        status = json.loads(request(f"{server.url}/status").body)
        assert (status["framework"], status["callback"]) == (None, None)
        assert status["engine"] is None
        assert len(server.matches("psycogreen: ")) == 1


def test_engine_switched_off(serve_uwsgi):
    """An engine option that is false selects no engine."""
    off = {"UWSGI_UGREEN": "false", "UWSGI_ASYNC": "10"}
    with serve_uwsgi("pypi", None, APP, **off) as server:
        [line] = server.await_line(LEFT_ALONE)
        assert "no coroutine engine" in line[3]


def test_without_psycogreen(serve_uwsgi):
    """Without psycogreen the queries of a worker wait for each other."""
    with serve_uwsgi("pypi", None, APP) as server:
        requests(10, f"{server.url}/plain/x/0")
        results = requests(10, f"{server.url}/plain/x/0.2")
        assert max(result.end for result in results) > 1.9


@each_own_engine
def test_conflict(serve_uwsgi, engine):
    """A foreign callback stays in place, and is named in the log."""
    with serve_uwsgi("pypi", engine, "--module=uwsgi_conflict_app") as server:
        [line] = server.await_line(LEFT_ALONE)
        assert "psycopg2 is left as it is: " in line[0]
        assert "psycopg2.extras.wait_select" in line[3]
        assert request(f"{server.url}/plain/x/0.1").body == "x"


def test_gevent_is_not_uwsgis(serve_uwsgi):
    """Under uWSGI's gevent engine psycogreen.uwsgi names the module to use."""
    with serve_uwsgi("pypi", "gevent", APP) as server:
        assert "use psycogreen.gevent" in request(f"{server.url}/explicit/x/0").body


@each_build
@each_engine
def test_examples(serve_uwsgi, examples, build, engine):
    """The configuration files of the examples run the example application."""
    ini = examples / f"uwsgi-{engine}.ini"
    with serve_uwsgi(build, engine, f"--ini={ini}") as server:
        server.await_line(INSTALLED)
        requests(50, f"{server.url}/sleep/0.0")  # opens the connections
        results = requests(50, f"{server.url}/sleep/0.2")
        assert [result.error for result in results] == [None] * 50
        assert_at_once(results, one_by_one=10)
        assert not server.matches("psycogreen: warning")
        assert not re.search(r"\[strict-mode\] unknown|DANGER", server.output)
        server.stop()  # with SIGTERM, as systemd and docker do


@pytest.mark.parametrize("options", [(), ("--master", "--lazy-apps")])
def test_monkey_patch_missing(serve_uwsgi, options):
    """A gevent engine without a monkey patch causes one warning in each worker."""
    warning = r"psycogreen: warning: gevent has not monkey-patched .* worker (\d+) "
    with serve_uwsgi("pypi", "gevent", *options, APP) as server:
        line = server.await_line(warning)[0]
        assert line.string.endswith("--gevent-early-monkey-patch")
        request(f"{server.url}/plain/x/0.0")
        assert len(server.matches(warning)) == 1


@each_own_engine
def test_explicit_example(serve_uwsgi, engine):
    """The example of asynchronous connections serves requests concurrently."""
    with serve_uwsgi("pypi", engine, "--module=uwsgi_async_app") as server:
        results = requests(20, f"{server.url}/0.5")
        assert {result.body for result in results} == {"slept for 0.5 seconds\n"}
        assert_at_once(results, one_by_one=10)


def test_docs_have_the_log_lines():
    """docs/uwsgi.rst explains the lines that are logged."""
    text = " ".join((Path(ROOT) / "docs" / "uwsgi.rst").read_text().split())
    for line in (
        "gevent wait callback installed in worker",
        "uwsgi wait callback installed (greenlet) in worker",
        "uwsgi wait callback installed (ugreen) in worker",
        "no wait callback installed in worker",
        "psycogreen: warning: gevent has not monkey-patched the process in worker",
        "psycogreen: warning: uGreen's stacks are",
        "psycogreen: warning: a request under uGreen that waits for the rest",
    ):
        assert line in text


def test_overview(find_uwsgi, tmp_path):
    """``python -m psycogreen`` finds its environment's uWSGI, also off the PATH."""
    build = find_uwsgi("pypi")
    result = subprocess.run(
        [build.python, "-P", "-m", "psycogreen"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(
        rf"^uWSGI +{re.escape(UWSGI)} +{build.program}$", result.stdout, re.MULTILINE
    )


def test_code_of_the_page(serve_uwsgi, server, tmp_path):
    """The Python code of docs/uwsgi.rst works in a request."""
    waits, bounds = code_blocks(ROOT / "docs" / "uwsgi.rst", "python")
    (tmp_path / "page_app.py").write_text(
        "def application(environ, start_response):\n"
        + textwrap.indent(waits, "    ")
        + "    start_response('200 OK', [])\n"
        "    return [b'done']\n" + bounds
    )
    options = (f"--pythonpath={tmp_path}", "--module=page_app")
    libpq = {"PGHOST": server.host, "PGPORT": str(server.port), "PGUSER": "postgres"}
    with serve_uwsgi("pypi", "ugreen", *options, **libpq) as uwsgi:
        results = requests(20, uwsgi.url)
        assert [result.body for result in results] == ["done"] * 20
        assert_at_once(results, one_by_one=20)
