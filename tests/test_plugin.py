"""The gevent plugin, which installs the callback if PSYCOGREEN=gevent is set."""

import json
import subprocess
import sys

import pytest
from load import request, requests
from overlap import assert_at_once
from servers import gunicorn

STATUS = "import psycogreen; print(psycogreen.status().callback)"
INSTALLED = "psycogreen.gevent.gevent_wait_callback"


@pytest.fixture
def app(tmp_path):
    """A program that tells what is installed when it begins."""
    path = tmp_path / "app.py"
    path.write_text(STATUS)
    return str(path)


def test_script(python, app):
    """A script run by ``python -m gevent.monkey`` is green."""
    code = f"import sys; sys.argv[1:] = [{app!r}]; import gevent.monkey as m; m.main()"
    assert python(code, PSYCOGREEN="gevent").strip() == INSTALLED
    assert python(code).strip() == "None"


def test_module(app):
    """``python -m gevent.monkey --module`` runs psycogreen's own command green."""
    command = [sys.executable, "-P", "-m", "gevent.monkey", "--module", "psycogreen"]
    result = subprocess.run(
        command,
        env={"PSYCOGREEN": "gevent"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"waits with {INSTALLED}" in result.stdout
    assert "psycogreen's plugin: PSYCOGREEN=gevent" in result.stdout


def test_patch_all(python):
    """Any call of patch_all() installs the callback, also a second one."""
    code = (
        "from gevent import monkey; monkey.patch_all()\n"
        "import warnings; warnings.simplefilter('ignore')  # of the second call\n"
        "monkey.patch_all(sys=True)\n"
    )
    assert python(code + STATUS, PSYCOGREEN="gevent").strip() == INSTALLED


@pytest.mark.parametrize("value", [None, ""])
def test_nothing_without_the_variable(python, value):
    """Without the variable, or with it empty, not even psycopg2 is imported."""
    env = {} if value is None else {"PSYCOGREEN": value}
    python(
        "import sys; sys.modules['psycopg2'] = None\n"
        "from gevent import monkey; monkey.patch_all()\n"
        "assert '_psycogreen_plugin' in sys.modules\n"
        "assert 'psycogreen' not in sys.modules",
        **env,
    )


@pytest.mark.parametrize("value", ["eventlet", "1", "Gevent"])
def test_wrong_value(python, value):
    """A wrong value of PSYCOGREEN is refused, and shown."""
    python(
        "from gevent import monkey\n"
        "try:\n"
        "    monkey.patch_all()\n"
        "except ValueError as ex:\n"
        f"    assert \"PSYCOGREEN='{value}': it must be 'gevent'\" in str(ex), ex\n"
        "else:\n"
        "    raise AssertionError",
        PSYCOGREEN=value,
    )


@pytest.mark.parametrize("worker", ["gevent", "gevent_pywsgi"])
def test_gunicorn(dsn, worker):
    """A gunicorn gevent worker is green with the variable alone."""
    env = {"DSN": dsn, "PSYCOGREEN": "gevent"}
    with gunicorn("flask_app:app", "-k", worker, env=env) as server:
        requests(50, f"{server.url}/sleep/0.0")  # opens the connections
        results = requests(50, f"{server.url}/sleep/0.2")
        assert [result.error for result in results] == [None] * 50
        assert_at_once(results, one_by_one=10)
        assert len(server.matches("psycogreen: gevent wait callback installed")) == 1
        assert not server.matches("WARNING")


def test_gunicorn_together_with_the_configuration(dsn):
    """PSYCOGREEN=gevent and psycogreen's configuration work together."""
    conf = ("-c", "python:psycogreen.integrations.gunicorn_conf")
    env = {"PSYCOGREEN": "gevent"}
    with gunicorn("status_app:app", "-k", "gevent", *conf, env=env) as server:
        assert json.loads(request(server.url).body)["callback"] == INSTALLED
