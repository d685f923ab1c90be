"""The backend for Django, and its pool."""

import textwrap

import pytest

START = {
    "gevent": "from gevent import monkey; monkey.patch_all()\n"
    "import psycogreen; psycogreen.patch_psycopg()",
    "eventlet": "import eventlet; eventlet.monkey_patch()\n"
    "import psycogreen; psycogreen.patch_psycopg()",
    "native": "",
}
COMMON = """
import os, threading, time, warnings
import psycopg2
from psycopg2.extensions import parse_dsn

def database(pool=True, *, backend="psycogreen.integrations.django", options={}, **more):
    dsn = parse_dsn(os.environ["DSN"])
    return {
        "ENGINE": backend, "HOST": dsn["host"], "PORT": dsn["port"],
        "NAME": dsn["dbname"], "USER": dsn["user"],
        "OPTIONS": {**options, **({"pool": pool} if pool else {})}, **more,
    }

def setup(databases, **settings):
    import django
    from django.conf import settings as configured
    configured.configure(DATABASES=databases, **settings)
    django.setup()

def in_threads(function, count):
    threads = [threading.Thread(target=function) for _ in range(count)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()

def await_(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)

def query(sql, alias="default"):
    from django.db import connections
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]

def refused(function):
    from django.core.exceptions import ImproperlyConfigured
    try:
        function()
    except ImproperlyConfigured as ex:
        return str(ex)
    raise AssertionError
"""
DJANGO = """
from django.db import OperationalError, connection, connections, transaction
from psycogreen.integrations.django import pool_status
"""

pytest.importorskip("django")
each_process = pytest.mark.parametrize("process", START)


@pytest.fixture
def run(python):
    """Run code in a process of that kind."""

    def run(process, code, **env):
        return python(START[process] + COMMON + textwrap.dedent(code), **env)

    return run


@each_process
def test_sharing(run, process):
    """Each thread borrows a connection, waits for a free one, and close() returns it."""
    run(
        process,
        'setup({"default": database({"min_size": 0, "max_size": 2})})'
        + DJANGO
        + textwrap.dedent("""
        assert pool_status() is None
        pids = set()
        def work():
            for _ in range(5):
                with transaction.atomic():
                    pids.add(query("select pg_backend_pid()"))
                    query("select pg_sleep(0.001)")
                connection.close()
        in_threads(work, 20)
        now = pool_status()
        assert len(pids) == 2, pids
        assert (now.name, now.size, now.in_use, now.max_size) == ("default", 2, 0, 2), now
        connection.close_pool()
        assert pool_status() is None
        assert query("select 42") == 42
        """),
    )


@each_process
def test_never_closed(run, process):
    """A thread or greenlet that ends without close() loses no place."""
    run(
        process,
        'setup({"default": database({"min_size": 0, "max_size": 2})})'
        + DJANGO
        + textwrap.dedent("""
        import gc, sys
        gc.disable()
        def forget():
            connection.set_autocommit(False)
            query("select 1")
        in_threads(forget, 10)
        # eventlet's greenlets are cyclic garbage, and it keeps the last one that waited.
        def others():
            if "eventlet" in sys.modules:
                in_threads(lambda: (query("select 1"), connection.close()), 1)
                gc.collect()
        await_(lambda: (others(), pool_status().in_use)[1] == 0)
        """),
    )


@each_process
def test_exhausted(run, process):
    """After the pool's timeout Django's OperationalError is raised, with figures."""
    run(
        process,
        'setup({"default": database({"min_size": 0, "max_size": 1, "timeout": 0.1})})'
        + DJANGO
        + textwrap.dedent("""
        query("select 1")
        told = []
        def work():
            try:
                query("select 1")
            except OperationalError as ex:
                told.append(str(ex))
        in_threads(work, 1)
        assert "within 0.1 s: 1 of 1 are in use" in told[0], told
        assert pool_status().timed_out == 1
        """),
    )


@each_process
def test_as_new(run, process):
    """A borrowed connection has Django's settings, whatever its last user changed."""
    run(
        process,
        'options = {"options": "-c statement_timeout=1234"}\n'
        'setup({"default": database({"min_size": 0, "max_size": 1}, options=options)},\n'
        '      TIME_ZONE="Europe/Rome", USE_TZ=False)'
        + DJANGO
        + textwrap.dedent("""
        def state():
            return [query(f"show {name}") for name in
                    ("timezone", "statement_timeout", "search_path")]
        new, pid = state(), query("select pg_backend_pid()")
        assert new[:2] == ["Europe/Rome", "1234ms"], new
        with connection.cursor() as cursor:
            cursor.execute("set timezone to 'UTC'")
            cursor.execute("set statement_timeout to 0")
            cursor.execute("set search_path to nowhere")
        connection.close()
        assert (state(), query("select pg_backend_pid()")) == (new, pid)
        connection.set_autocommit(False)
        query("select 1")
        connection.close()
        observer = psycopg2.connect(os.environ["DSN"]).cursor()
        observer.execute("select state from pg_stat_activity where pid = %s", [pid])
        assert observer.fetchone() == ("idle",)
        assert connection.get_autocommit()
        assert query("select pg_backend_pid()") == pid
        """),
    )


@each_process
def test_features(run, process):
    """atomic(), on_commit(), server-side cursors and several aliases work."""
    run(
        process,
        'pool = {"min_size": 0, "max_size": 1}\n'
        'setup({"default": database(pool), "other": database(pool)})'
        + DJANGO
        + textwrap.dedent("""
        done = []
        with transaction.atomic():
            transaction.on_commit(lambda: done.append(1))
            try:
                with transaction.atomic():
                    query("select 1 / 0")
            except Exception as ex:
                assert "division" in str(ex)
            assert query("select 1") == 1 and not done
        assert done == [1]
        with connection.chunked_cursor() as cursor:
            cursor.execute("select generate_series(1, 10)")
            assert cursor.fetchmany(3) == [(1,), (2,), (3,)]
        pid = query("select pg_backend_pid()")
        assert query("select pg_backend_pid()", "other") != pid
        connection.close()
        assert query("select pg_backend_pid()") == pid
        assert [pool_status(alias).in_use for alias in ("default", "other")] == [1, 1]
        """),
    )


def test_connection_params(run):
    """What traces Django's connections, such as Sentry, may ask for the arguments."""
    run(
        "native",
        'setup({"default": database({"min_size": 0, "max_size": 1})})'
        + DJANGO
        + textwrap.dedent("""
        from django.db.backends.base.base import BaseDatabaseWrapper
        asked = []
        connect = BaseDatabaseWrapper.connect
        def traced(wrapper):
            asked.append(wrapper.get_connection_params())
            return connect(wrapper)
        BaseDatabaseWrapper.connect = traced
        for _ in range(2):
            query("select 1")
            connection.close()
        asked.append(connection.get_connection_params())
        assert asked[0] == asked[1] == asked[2], asked
        assert asked[0]["dbname"] == "postgres" and "pool" not in asked[0], asked
        """),
    )


WRONG = {
    "{'max_sizes': 3}": "unknown option 'max_sizes': there are 'min_size'",
    "{'min_size': 5, 'max_size': 2}": "max_size=2",
    "'yes'": "'yes' is neither True nor a dictionary",
    "{'timeout': None}": "",
}


@pytest.mark.parametrize("pool", WRONG)
def test_wrong_option(run, pool):
    """A wrong option of the pool raises ImproperlyConfigured, which names it."""
    run(
        "native",
        f'setup({{"default": database({pool})}})\n'
        f'told = refused(lambda: query("select 1"))\n'
        f"assert \"pool of database 'default'\" in told, told\n"
        f"assert {WRONG[pool]!r} in told, told",
    )


@pytest.mark.parametrize("age", [60, None])
def test_max_age(run, age):
    """CONN_MAX_AGE together with a pool is refused."""
    run(
        "native",
        f'setup({{"default": database(CONN_MAX_AGE={age})}})\n'
        f'told = refused(lambda: query("select 1"))\n'
        f'assert "CONN_MAX_AGE={age}" in told, told',
    )


@pytest.mark.parametrize("pool", [None, False, "{}"])
def test_without_a_pool(run, pool):
    """Without the option the backend is Django's: each thread has its connection."""
    run(
        "native",
        f'setup({{"default": database({pool}, CONN_MAX_AGE=60)}})'
        + DJANGO
        + textwrap.dedent("""
        pid = query("select pg_backend_pid()")
        assert connection.pool is None and pool_status() is None
        def work():
            assert query("select pg_backend_pid()") != pid
            connection.close()
        in_threads(work, 2)
        connection.close_pool()
        connection.close()
        assert query("select pg_backend_pid()") != pid
        """),
    )


def test_test_databases(run):
    """Test databases can be made, cloned and destroyed with a pool."""
    run(
        "native",
        'setup({"default": database({"min_size": 1, "max_size": 2})})'
        + DJANGO
        + textwrap.dedent("""
        assert query("select current_database()") == "postgres"
        creation = connection.creation
        creation.create_test_db(verbosity=0, autoclobber=True)
        assert query("select current_database()") == "test_postgres"
        creation.clone_test_db("1", verbosity=0, autoclobber=True)
        creation.destroy_test_db("test_postgres", verbosity=0, suffix="1")
        query("select 1")
        creation.destroy_test_db("postgres", verbosity=0)
        assert query("select current_database()") == "postgres"
        assert query("select count(*) from pg_database where datname like 'test_%'") == 0
        """),
    )


def test_fork(run):
    """A forked child makes its own pool, and does not touch its parent's."""
    run(
        "native",
        'setup({"default": database({"min_size": 0, "max_size": 2})})'
        + DJANGO
        + textwrap.dedent("""
        query("select 1")
        connection.close()
        pid = query("select pg_backend_pid()")
        connection.close()
        # The pool has a thread of its own.
        warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
        if not (child := os.fork()):
            failed = 1
            try:
                assert pool_status() is None
                assert query("select pg_backend_pid()") != pid
                connection.close()
                failed = 0
            finally:
                os._exit(failed)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert query("select pg_backend_pid()") == pid
        """),
    )


# What stands for psycopg 3: as much of it as Django looks at when it chooses.
PSYCOPG3 = """
import sys, types
from enum import IntEnum
def fake(name, **contents):
    module = sys.modules[name] = types.ModuleType(name)
    vars(module).update(contents)
    return module
class Adapters:
    types = {"timestamptz": types.SimpleNamespace(oid=1184)}
    get_loader = staticmethod(lambda oid, format: a)
a, b = type("A", (), {}), type("B", (), {})
names = "tsrange", "tstzrange", "timestamptz"
of = {name: types.SimpleNamespace(oid=oid) for oid, name in enumerate(names)}
fake("psycopg", __version__="3.2.1", ClientCursor=a, IsolationLevel=IntEnum,
     adapt=types.SimpleNamespace(Loader=a),
     adapters=Adapters, errors=a, sql=a,
     pq=types.SimpleNamespace(Format=types.SimpleNamespace(TEXT=0)))
fake("psycopg.postgres", types=of)
fake("psycopg.types")
fake("psycopg.types.datetime", TimestamptzLoader=a)
fake("psycopg.types.json", Jsonb=a)
fake("psycopg.types.range", Range=a, RangeDumper=b)
fake("psycopg.types.string", TextLoader=a)
"""


def test_psycopg3_beside(run):
    """If psycopg 3 is installed too, the backend still uses psycopg2."""
    run(
        "native",
        PSYCOPG3
        + 'setup({"default": database({"max_size": 4})})'
        + DJANGO
        + textwrap.dedent("""
        import psycopg2, psycopg
        assert query("select 42") == 42
        assert connection.Database is psycopg2
        assert isinstance(connection.connection, psycopg2.extensions.connection)
        assert psycopg.__version__ == "3.2.1"
        """),
    )


def test_psycopg3_chosen(run):
    """If Django has already chosen psycopg 3, the error names the remedy."""
    run(
        "native",
        PSYCOPG3
        + textwrap.dedent("""
        import django.db.backends.postgresql.psycopg_any as chosen
        assert chosen.is_psycopg3
        setup({"default": database()})
        told = refused(lambda: query("select 1"))
        assert "'import psycogreen.integrations.django' into the settings" in told, told
        """),
    )


def test_imported_in_the_settings(run, tmp_path):
    """An import in the settings, before django.contrib.postgres, selects psycopg2."""
    (tmp_path / "chosen_settings.py").write_text(
        "import psycogreen.integrations.django\n"
        "INSTALLED_APPS = ['django.contrib.postgres']\n"
        "SECRET_KEY = 'x'\n"
        "USE_TZ = True\n"
        "from __main__ import database\n"
        "DATABASES = {'default': database({'max_size': 4})}\n"
    )
    run(
        "native",
        PSYCOPG3
        + textwrap.dedent(f"""
        sys.path.append({str(tmp_path)!r})
        os.environ["DJANGO_SETTINGS_MODULE"] = "chosen_settings"
        import django, psycopg2
        django.setup()
        assert query("select 42") == 42
        from django.db import connection
        assert connection.Database is psycopg2
        """),
    )


def test_metrics(run):
    """Prometheus gets the figures of each pool, by its alias."""
    run(
        "native",
        'setup({"default": database({"min_size": 0, "max_size": 3})})'
        + DJANGO
        + textwrap.dedent("""
        from prometheus_client import CollectorRegistry, generate_latest
        from psycogreen.integrations import metrics
        registry = CollectorRegistry()
        metrics.register(registry)
        query("select 1")
        text = generate_latest(registry).decode()
        for line in ("size{pool='default'} 1.0", "in_use{pool='default'} 1.0",
                     "waiting{pool='default'} 0.0", "timed_out_total{pool='default'} 0.0",
                     "longest_wait_seconds{pool='default'} 0.0"):
            assert "psycogreen_pool_" + line.replace("'", '"') in text, (line, text)
        """),
    )


def test_metrics_of_several_processes(run, tmp_path):
    """The pools' figures are written where those of several processes are collected."""
    run(
        "native",
        'setup({"default": database({"min_size": 0, "max_size": 3})})'
        + DJANGO
        + textwrap.dedent("""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector
        from psycogreen.integrations import metrics
        query("select 1")
        metrics.register(interval=0.01)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        def in_use(count):
            line = f'psycogreen_pool_in_use{{pool="default"}} {count}.0'
            return line in generate_latest(registry).decode()
        await_(lambda: in_use(1))
        connection.close()
        await_(lambda: in_use(0))
        """),
        PROMETHEUS_MULTIPROC_DIR=str(tmp_path),
    )
