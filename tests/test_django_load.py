"""Django's pool under load: the server restarts, requests are killed, or sleep."""

import pytest
from conftest import environment

from psycogreen._check.postgres import find_programs, postgres

pytest.importorskip("django")

# Clients, connections allowed, requests to kill.
SCALES = [
    pytest.param((40, 5, 100), id="small"),
    pytest.param((200, 20, 1000), id="full", marks=pytest.mark.full),
]

COMMON = """
from gevent import monkey; monkey.patch_all()
import psycogreen; psycogreen.patch_psycopg()
import io, os, random, signal, subprocess, sys, time
import gevent, psycopg2
from psycopg2.extensions import parse_dsn
from django.conf import settings
CLIENTS, SIZE, KILLS = map(int, sys.argv[1:])
dsn = parse_dsn(os.environ["DSN"])
settings.configure(
    ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="x",
    # What fails is counted here.
    LOGGING={"version": 1, "loggers": {"django": {"level": "CRITICAL"}}},
    DATABASES={"default": {
        "ENGINE": "psycogreen.integrations.django", "HOST": dsn["host"],
        "PORT": dsn["port"], "NAME": "postgres", "USER": "postgres",
        "OPTIONS": {
            "application_name": "pooled",
            "pool": {"min_size": 0, "max_size": SIZE,
                     "timeout": float(os.environ.get("TIMEOUT", 30))},
        },
    }},
)
from django.core.wsgi import get_wsgi_application
from django.db import connection, transaction
from django.http import HttpResponse
from django.urls import path
from psycogreen.integrations.django import pool_status

LOCKED = 1  # the milliseconds of a request that waits for a lock before

def view(request, milliseconds):
    with transaction.atomic(), connection.cursor() as cursor:
        if milliseconds == LOCKED:
            cursor.execute("select pg_advisory_xact_lock_shared(1)")
        cursor.execute("select 42, pg_sleep(%s)", [milliseconds / 1000])
        return HttpResponse(str(cursor.fetchone()[0]))

urlpatterns = [path("sleep/<int:milliseconds>", view)]
app = get_wsgi_application()

def request(milliseconds):
    said = []
    response = app(
        {"REQUEST_METHOD": "GET", "PATH_INFO": f"/sleep/{milliseconds}",
         "SERVER_NAME": "x", "SERVER_PORT": "80", "wsgi.url_scheme": "http",
         "SERVER_PROTOCOL": "HTTP/1.1", "wsgi.input": io.BytesIO()},
        lambda status, headers: said.append(status),
    )
    body = b"".join(response)
    response.close()
    assert body == b"42" or not said[0].startswith("200"), body
    return said[0].startswith("200")

def await_(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, pool_status()
        time.sleep(0.01)

def watch():
    '''Note how many of the pool's connections the server has.'''
    while True:
        try:
            conn = psycopg2.connect(os.environ["DSN"])
            conn.autocommit = True
            cursor = conn.cursor()
            while True:
                cursor.execute(
                    "select count(*), count(*) filter (where state like 'idle in%')"
                    " from pg_stat_activity where application_name = 'pooled'")
                seen.append(cursor.fetchone())
                time.sleep(0.005)
        except psycopg2.Error:
            time.sleep(0.01)

seen = []
watcher = gevent.spawn(watch)

def check_rest():
    '''Assert that all is as it should be once there is no load.'''
    await_(lambda: (pool_status().in_use, pool_status().waiting) == (0, 0))
    count = len(seen)
    await_(lambda: len(seen) > count + 1)
    assert seen[-1][1] == 0, seen[-1]
    assert seen[-1][0] == pool_status().size, (seen[-1], pool_status())
    assert max(number for number, _ in seen) <= SIZE, max(seen)
    assert all(request(0) for _ in range(SIZE))
"""

RESTART = """
good, bad, running = [], [], True  # when they were answered; when they were made
def client():
    while running:
        made = time.monotonic()
        if request(2):
            good.append(time.monotonic())
        else:
            bad.append(made)
        time.sleep(0.001)
clients = [gevent.spawn(client) for _ in range(CLIENTS)]
await_(lambda: len(good) > CLIENTS)
os.kill(int(os.environ["POSTMASTER"]), signal.SIGQUIT)
await_(lambda: len(bad) > CLIENTS)
data = os.environ["DATA"]
await_(lambda: not os.path.exists(f"{data}/postmaster.pid"))
owner = os.stat(data)
again = subprocess.Popen(
    [os.environ["POSTGRES"], "-D", data, "-p", dsn["port"]], cwd=data,
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    **({"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
       if os.geteuid() == 0 else {}),
)
try:
    def ready():
        try:
            psycopg2.connect(os.environ["DSN"]).close()
        except psycopg2.OperationalError:
            return False
        return True
    await_(ready)
    started, count = time.monotonic(), len(good)
    # The same request over a connection of its own, while the others make theirs.
    with psycopg2.connect(os.environ["DSN"]) as conn, conn.cursor() as cursor:
        cursor.execute("select 42, pg_sleep(0.002)")
    alone = time.monotonic() - started
    await_(lambda: len(good) > count + CLIENTS)
    print(good[count] - started, alone, sum(made > started for made in bad))
    running = False
    gevent.joinall(clients, timeout=60, raise_error=True)
    assert all(client.dead for client in clients)
    check_rest()
finally:
    again.send_signal(signal.SIGQUIT)
    again.wait()
"""

KILLED = """
chosen = random.Random(2)
left = [None] * KILLS
def client():
    while left:
        left.pop()
        asked = gevent.spawn(request, 3)
        time.sleep(chosen.random() / 20)
        asked.kill()
gevent.joinall([gevent.spawn(client) for _ in range(CLIENTS)], raise_error=True)
check_rest()
"""

EXHAUSTED = """
holder = psycopg2.connect(os.environ["DSN"])
holder.cursor().execute("select pg_advisory_lock(1)")

def blocked():
    with holder.cursor() as cursor:
        cursor.execute("select count(*) from pg_locks where not granted")
        return cursor.fetchone()[0]

served = [gevent.spawn(request, LOCKED) for _ in range(SIZE)]
await_(lambda: blocked() == SIZE)
refused = [gevent.spawn(request, 0) for _ in range(CLIENTS - SIZE)]
gevent.joinall(refused, timeout=60, raise_error=True)
assert [each.value for each in refused] == [False] * (CLIENTS - SIZE)
assert pool_status().timed_out == CLIENTS - SIZE, pool_status()
assert pool_status().waiting == 0, pool_status()
holder.close()
gevent.joinall(served, timeout=60, raise_error=True)
assert [each.value for each in served] == [True] * SIZE
check_rest()
"""


@pytest.fixture
def own_server():
    """A PostgreSQL server that may be stopped."""
    with postgres() as server:
        yield server


def variables(server):
    """Return what a process needs to stop and start the server."""
    return {
        **environment(server),
        "POSTMASTER": str(server.pid),
        "DATA": server.data_directory,
        "POSTGRES": str(find_programs() / "postgres"),
    }


def arguments(scale):
    """Return the scale as arguments of a program."""
    return map(str, scale)


@pytest.mark.parametrize("scale", SCALES)
def test_server_restarts(python, own_server, tmp_path, scale):
    """After a restart of the server requests succeed again; none hangs."""
    program = tmp_path / "restart.py"
    program.write_text(COMMON + RESTART)
    env = variables(own_server)
    output = python(program, *arguments(scale), **env)
    first, alone, failed = map(float, output.split())
    # Seconds. A busy machine takes longer for a client without a pool as well.
    assert first < 1 + 5 * alone, output
    # A connection that was being opened by then may still be refused, one at each place.
    assert failed <= scale[1], output


@pytest.mark.parametrize("scale", SCALES)
def test_killed(python, own_server, tmp_path, scale):
    """Killed requests lose no place of the pool, and leave no extra connection."""
    program = tmp_path / "killed.py"
    program.write_text(COMMON + KILLED)
    python(program, *arguments(scale), **variables(own_server))


@pytest.mark.parametrize("scale", SCALES)
def test_exhausted(python, own_server, tmp_path, scale):
    """Requests that wait too long for a connection fail; those that have one succeed."""
    program = tmp_path / "exhausted.py"
    program.write_text(COMMON + EXHAUSTED)
    # Seconds: long enough to open the connections on a busy machine.
    python(program, *arguments(scale), TIMEOUT="8", **variables(own_server))
