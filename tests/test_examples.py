"""Every example runs."""

import json
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.request import urlopen

import psycopg2
import pytest
import uwsgi_builds
from load import request, requests
from overlap import assert_at_once
from servers import ROOT, HttpServer, gunicorn
from uwsgi_builds import ENGINES

from psycogreen._check.postgres import postgres


@pytest.mark.parametrize("framework", ["gevent", "eventlet"])
def test_server(framework, dsn, examples):
    """The example of a server that calls patch_psycopg() itself is green."""
    program = str(examples / f"{framework}_server.py")
    env = {"DSN": dsn, "PORT": "0", "PYTHONPATH": str(examples)}
    with HttpServer(sys.executable, "-P", program, env=env) as server:
        server.await_listening()
        requests(50, f"{server.url}/sleep/0.0")  # opens the connections
        results = requests(50, f"{server.url}/sleep/0.2")
        assert [result.error for result in results] == [None] * 50
        assert_at_once(results, one_by_one=10)


def test_libpq_environment(server, libpq):
    """Without DSN the example uses libpq's environment; whole seconds need no point."""
    env = {"DSN": "", **libpq}
    with gunicorn("flask_app:app", "-k", "gevent", env=env) as worker:
        answer = request(f"{worker.url}/sleep/0")
        assert (answer.error, answer.body.strip()) == (None, '{"slept":0}')


def test_copy(dsn):
    """The COPY example loads rows, and stores and serves files, in a green worker."""
    options = ("-k", "gevent", "-c", "python:psycogreen.integrations.gunicorn_conf")
    rows = "".join(f"{n},name {n}\n" for n in range(100_000)).encode()
    file = bytes(range(256)) * 10_000
    with gunicorn("copy_app:app", *options, env={"DSN": dsn}) as worker:

        def ask(path, data=None):
            with urlopen(f"{worker.url}/{path}", data, timeout=60) as answer:
                return answer.read()

        with ThreadPoolExecutor(4) as pool:
            ask("rows", b"")
            loads = [pool.submit(ask, "rows", rows) for _ in range(4)]
            assert [json.loads(each.result()) for each in loads] == [
                {"rows": 100_000}
            ] * 4
        total = {"rows": 400_000, "total": 4 * sum(range(100_000))}
        assert json.loads(ask("rows")) == total
        oid = json.loads(ask("files", file))["oid"]
        assert ask(f"files/{oid}") == file


def test_replication(examples):
    """A consumer notes what is changed, while the server answers requests."""
    with postgres(settings={"wal_level": "logical"}) as database:
        env = {"DSN": database.dsn, "PORT": "0"}
        program = str(examples / "replication_server.py")
        with (
            HttpServer(sys.executable, "-P", program, env=env) as server,
            closing(psycopg2.connect(database.dsn)) as conn,
        ):
            server.await_listening()
            server.await_line("Consuming")
            cursor = conn.cursor()
            cursor.execute("create table noted (n int)")
            cursor.execute("insert into noted select n from generate_series(1, 3) n")
            conn.commit()
            deadline = time.monotonic() + 60
            body = ""
            while "n[integer]:3" not in body:
                assert time.monotonic() < deadline, server.output
                answer = request(f"{server.url}/")
                assert answer.error is None
                body = answer.body
            rows = [f"table public.noted: INSERT: n[integer]:{n}" for n in (1, 2, 3)]
            assert [line for line in body.splitlines() if "INSERT" in line] == rows


def test_no_variable_is_required(examples):
    """No example ends with a KeyError: each variable has a default."""
    files = [*examples.rglob("*.py")]
    assert files
    for path in files:
        assert "os.environ[" not in path.read_text(), path


@pytest.mark.full
def test_demo(python, tmp_path, monkeypatch):
    """The demo shows the blocking worker and the green ones."""
    monkeypatch.chdir(tmp_path)
    output = python(ROOT / "demo", COLUMNS="200")
    rows = re.findall(r"│ (without psycogreen|with .*?) +│ +(\d+) of (\d+)", output)
    green = ["with psycogreen"]
    if uwsgi_builds.built():
        green += [f"with psycogreen, uWSGI {engine}" for engine in ENGINES]
    else:
        assert "make uwsgi builds one" in output
    assert rows == [
        ("without psycogreen", "50", "50"),
        *[(name, "50", "50") for name in green],
        ("without psycogreen", "0", "21"),
        *[(name, "21", "21") for name in green],
    ], output
    assert f"{tmp_path}/timeline.svg" in output
    assert "<svg" in (tmp_path / "timeline.svg").read_text()
