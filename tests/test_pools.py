"""SQLAlchemy's, psycopg2's and Django's pools, and PgBouncer, with green workers."""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import psycopg2
import pytest
from load import requests
from servers import ROOT, gunicorn
from services import find_pgbouncer, pgbouncer

CONF = ("-k", "gevent", "-c", "python:psycogreen.integrations.gunicorn_conf")

START = {
    "gevent": """
from gevent import monkey; monkey.patch_all()
import gevent.pool
from gevent import Timeout
run_all = gevent.pool.Pool(50).map
""",
    "eventlet": """
import eventlet; eventlet.monkey_patch()
from eventlet import Timeout
run_all = eventlet.GreenPool(50).imap
""",
}
GREEN = {
    name: start
    + """
import psycogreen; psycogreen.patch_psycopg()
import os
import psycopg2
DSN = os.environ["DSN"]
"""
    for name, start in START.items()
}

each_framework = pytest.mark.parametrize("framework", GREEN)


@contextmanager
def cursor(dsn):
    """A cursor of this process's own."""
    conn = psycopg2.connect(dsn)
    conn.autocommit = True
    with conn.cursor() as cursor:
        yield cursor
    conn.close()


def await_(condition, timeout=60):
    """Wait until the condition holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_sqlalchemy(python, examples):
    """Greenlets wait while SQLAlchemy's pool is exhausted, and all are served."""
    total, status = python(examples / "pool_sqlalchemy.py").split(" ", 1)
    assert int(total) == sum(range(50))
    assert "Pool size: 5  Connections in pool: 5 Current Overflow: 0" in status
    assert "Current Checked out connections: 0" in status


SQLALCHEMY = """
from sqlalchemy import create_engine, text
engine = create_engine(
    "postgresql+psycopg2://", creator=lambda: psycopg2.connect(DSN),
    pool_size={size}, max_overflow=0, pool_timeout={timeout},
)
def query(sql):
    with engine.connect() as conn:
        return conn.execute(text(sql)).first()[0]
"""


@each_framework
def test_sqlalchemy_waits(python, framework):
    """SQLAlchemy's pool lets greenlets wait under either framework."""
    output = python(
        GREEN[framework]
        + SQLALCHEMY.format(size=5, timeout=30)
        + "queries = [f'select {n}, pg_sleep(0.05)' for n in range(50)]\n"
        "print(sum(run_all(query, queries)))"
    )
    assert int(output) == sum(range(50))


@each_framework
def test_sqlalchemy_gives_up(python, framework):
    """After pool_timeout SQLAlchemy's pool raises its error."""
    python(
        GREEN[framework]
        + SQLALCHEMY.format(size=1, timeout=0.2)
        + "from sqlalchemy.exc import TimeoutError\n"
        "def attempt(sql):\n"
        "    try: query(sql)\n"
        "    except TimeoutError as ex: return str(ex)\n"
        "first, second = run_all(attempt, ['select 1, pg_sleep(1)'] * 2)\n"
        "assert first is None and 'QueuePool limit of size 1' in second, second"
    )


@each_framework
def test_sqlalchemy_drops_what_was_interrupted(python, framework):
    """SQLAlchemy's pool drops a connection that a Timeout has closed."""
    python(
        GREEN[framework] + SQLALCHEMY.format(size=1, timeout=5) + "for _ in range(3):\n"
        "    try:\n"
        "        with Timeout(0.1): query('select pg_sleep(60)')\n"
        "    except Timeout: pass\n"
        "    else: raise AssertionError\n"
        "    assert query('select 42') == 42\n"
    )


@each_framework
def test_psycopg2_pool_raises(python, framework):
    """psycopg2's own pool raises an error when it is exhausted."""
    output = python(
        GREEN[framework]
        + "from psycopg2.pool import PoolError, ThreadedConnectionPool\n"
        "import threading\n"
        "pool = ThreadedConnectionPool(2, 2, DSN)\n"
        "refused = threading.Event()\n"
        "def query(n):\n"
        "    try: conn = pool.getconn()\n"
        "    except PoolError as ex: refused.set(); return str(ex)\n"
        "    conn.cursor().execute('select pg_sleep(0.01)')\n"
        "    assert refused.wait(60)\n"
        "    pool.putconn(conn)\n"
        "print(*run_all(query, range(3)), sep=', ')"
    )
    assert output.strip() == "None, None, connection pool exhausted"


def test_psycopg2_pool_with_a_semaphore(python, examples):
    """With a semaphore around psycopg2's pool, greenlets wait for a connection."""
    assert int(python(examples / "pool_psycopg2.py")) == sum(range(50))


def test_psycopg2_pool_drops_what_was_interrupted(python):
    """psycopg2's pool drops a connection that a Timeout has closed."""
    python(
        GREEN["gevent"] + "from pool_psycopg2 import WaitingPool\n"
        "pool = WaitingPool(1, DSN)\n"
        "for _ in range(3):\n"
        "    try:\n"
        "        with Timeout(0.1), pool.connection() as conn:\n"
        "            conn.cursor().execute('select pg_sleep(60)')\n"
        "    except Timeout: pass\n"
        "    else: raise AssertionError\n"
        "    with pool.connection() as conn, conn.cursor() as cursor:\n"
        "        cursor.execute('select 42')\n"
        "        assert cursor.fetchone() == (42,)\n"
    )


@pytest.fixture
def django(dsn):
    """Run the Django project under gunicorn."""
    pytest.importorskip("django")

    def django(dsn=dsn, **env):
        chdir = ("--chdir", str(ROOT / "examples" / "django_project"))
        return gunicorn("project.wsgi", *CONF, *chdir, env={"DSN": dsn, **env})

    return django


def test_django(django):
    """Requests of the Django example share the connections of its pool."""
    with django(POOL_SIZE="10") as server:
        results = requests(30, f"{server.url}/sleep/100")
        assert [result.error for result in results] == [None] * 30
        seen = {json.loads(result.body)["backend"] for result in results}
        assert len(seen) == 10


def test_django_commands(dsn):
    """A management command blocks as usual, and is green with PSYCOGREEN=gevent."""
    pytest.importorskip("django")
    code = "import psycogreen; print(psycogreen.status().framework)"
    arguments = ("manage.py", "shell", "--verbosity=0", "--command", code)

    def run(*command, **env):
        return subprocess.run(
            [sys.executable, *command],
            cwd=ROOT / "examples" / "django_project",
            env={**os.environ, "DSN": dsn, **env},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    assert run(*arguments) == "None"
    assert run("-m", "gevent.monkey", *arguments, PSYCOGREEN="gevent") == "gevent"
    assert "no issues" in run("manage.py", "check", "--database", "default")


needs_pgbouncer = pytest.mark.skipif(
    not find_pgbouncer(), reason="pgbouncer is not installed: apt-get install it"
)


@needs_pgbouncer
@each_framework
@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_pgbouncer(python, dsn, mode, framework):
    """50 greenlets share PgBouncer's 5 connections; an interrupted query is cancelled."""
    code = """
def query(n):
    conn = psycopg2.connect(DSN)
    with conn, conn.cursor() as cursor:
        cursor.execute("select pg_backend_pid(), pg_sleep(0.02)")
        backend = cursor.fetchone()[0]
    conn.close()
    return backend

print(len(set(run_all(query, range(50)))))
conn = psycopg2.connect(DSN)
try:
    with Timeout(0.3):
        conn.cursor().execute("select 'to be cancelled', pg_sleep(60)")
except Timeout:
    print("interrupted")
"""
    with pgbouncer(dsn, mode, 5) as pooled:
        output = python(GREEN[framework] + code, DSN=pooled)
        assert output.split() == ["5", "interrupted"]
        with cursor(dsn) as mine:
            query = (
                "select count(*) from pg_stat_activity where state = 'active'"
                " and query like 'select ''to be cancelled%'"
            )
            await_(lambda: mine.execute(query) or mine.fetchone() == (0,))


@needs_pgbouncer
def test_django_behind_pgbouncer(django, dsn):
    """Django without a pool works with PgBouncer's few connections."""
    with pgbouncer(dsn, "transaction", 5) as pooled, django(pooled) as server:
        results = requests(30, f"{server.url}/sleep/20")
        assert [result.error for result in results] == [None] * 30
        seen = {json.loads(result.body)["backend"] for result in results}
        assert len(seen) <= 5
