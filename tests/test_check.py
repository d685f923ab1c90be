"""``python -m psycogreen``: its verdicts and its output."""

import json
import math
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import version

import psycopg2
import pytest
from conftest import environment
from load import request
from servers import gunicorn

import psycogreen

# Long enough for the verdict not to depend on the machine's load.
QUICK = ("--queries=2", "--seconds=1")

GEVENT = "from gevent import monkey; monkey.patch_all()\n"
EVENTLET = "import eventlet; eventlet.monkey_patch(psycopg=False)\n"
PSYCOGREEN = "import psycogreen; psycogreen.patch_psycopg({})\n"


@pytest.fixture
def command(server, tmp_path):
    """Run ``python -m psycogreen`` in a new process."""

    def command(*arguments, **env):
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "psycogreen", *arguments],
            env={**os.environ, **environment(server), **env},
            # Where no folder of that name hides the installed package.
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return command


@pytest.fixture
def named_dsn(dsn):
    """The server's connection string with a host name in it.

    For psycogreen this form of 127.0.0.1 is a name that the hosts file does not have.
    """
    return dsn.replace("host=127.0.0.1", "host=127.1")


@pytest.fixture
def check_app(command, named_dsn, tmp_path):
    """Check a module with the given code by ``check --app``; return the JSON."""

    def check_app(code, dsn=named_dsn, *arguments, **env):
        (tmp_path / "patching.py").write_text(code)
        options = ("--app=patching", "--json", *QUICK, *arguments)
        result = command("check", dsn, *options, **env)
        assert result.returncode in (0, 1), result.stderr
        report = json.loads(result.stdout)
        verdict = "BLOCKING" if result.returncode else "cooperative"
        assert report["verdict"] == verdict
        assert bool(report["problems"]) == bool(result.returncode)
        return report

    return check_app


def causes(report):
    """Return the titles of the problems."""
    return [problem.partition(":")[0] for problem in report["problems"]]


@pytest.mark.parametrize("framework", ["gevent", "eventlet"])
def test_cooperative(command, named_dsn, framework):
    """A correctly patched process is cooperative, and the figures show it."""
    result = command("check", named_dsn, f"--framework={framework}", *QUICK)
    assert result.returncode == 0, result.stderr
    first, *rows = result.stdout.splitlines()
    assert re.fullmatch(
        r"cooperative: 2 concurrent queries of 1 s took \d+\.\d\d s", first
    )
    figures = dict(re.findall(r"^  (\S.*?) {2,}(.*)$", "\n".join(rows), re.MULTILINE))
    assert figures["wait callback"].endswith(f".{framework}_wait_callback")
    assert figures["monkey patch"] == "in force"
    assert float(figures["wall time"].split()[0]) >= 1
    assert figures["longest stall"].split()[1] == "ms"
    assert figures["name resolution"] == "off the loop"
    assert figures["connect_timeout"] == "honoured"


def test_embedded(command):
    """With a throw-away server the check needs no database."""
    result = command("check", "--embedded", "--json", *QUICK)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["verdict"] == "cooperative"
    assert report["resolved_by"] == "psycogreen"
    assert report["status"]["framework"] == "gevent"


def test_application_that_patches(check_app):
    """With --app, the application's own patch is checked."""
    report = check_app(EVENTLET + PSYCOGREEN.format(""))
    assert report["verdict"] == "cooperative"
    assert report["status"]["framework"] == "eventlet"


@pytest.mark.parametrize(
    ("framework", "call"),
    [("gevent", "gevent.monkey.patch_all()"), ("eventlet", "eventlet.monkey_patch()")],
)
def test_monkey_patch_missing(check_app, framework, call):
    """Without a monkey patch the verdict is BLOCKING, although queries overlap."""
    report = check_app(PSYCOGREEN.format(repr(framework)))
    assert causes(report) == ["monkey patch missing"]
    assert call in report["problems"][0]


def test_monkey_patch_of_some_modules(check_app):
    """Modules that were left out of the monkey patch are named."""
    partly = "from gevent import monkey; monkey.patch_all(thread=False, time=False)\n"
    report = check_app(partly + PSYCOGREEN.format(""))
    assert causes(report) == ["monkey patch missing"]
    assert "has not patched threading, time;" in report["problems"][0]


def test_monkey_patch_of_another(check_app):
    """Eventlet's callback in a process that gevent has patched is a problem."""
    report = check_app(GEVENT + PSYCOGREEN.format("'eventlet'"))
    assert causes(report) == ["monkey patch missing"]
    assert "gevent has patched this process instead" in report["problems"][0]


@pytest.mark.parametrize("patch", [GEVENT, EVENTLET])
def test_callback_missing(check_app, patch):
    """With a monkey patch but no callback the queries run one after the other."""
    report = check_app(patch)
    assert causes(report)[0] == "wait callback missing"
    assert report["wall_time"] >= 2
    assert report["longest_stall"] > 0.9


def test_nothing_patched(check_app):
    """In a process with neither patch, both problems are reported."""
    report = check_app("")
    assert causes(report) == ["wait callback missing", "monkey patch missing"]
    assert report["wall_time"] is None


def test_callback_that_blocks(check_app):
    """A callback of another library that blocks is reported by name."""
    report = check_app(
        GEVENT + "import psycopg2.extensions, psycopg2.extras\n"
        "import select; select.select = monkey.get_original('select', 'select')\n"
        "psycopg2.extensions.set_wait_callback(psycopg2.extras.wait_select)"
    )
    assert "wait callback blocks" in causes(report)
    assert "psycopg2.extras.wait_select" in "".join(report["problems"])
    assert report["connect_timeout_honoured"] is None


@pytest.mark.parametrize("framework", ["gevent", "eventlet"])
def test_name_resolution_by_libpq(check_app, dsn, framework):
    """Without resolve_hosts a host name stops the loop, and an address does not."""
    patch = {"gevent": GEVENT, "eventlet": EVENTLET}[framework]
    code = patch + PSYCOGREEN.format("resolve_hosts=False")
    report = check_app(code)
    assert causes(report) == ["name resolution blocks"]
    assert report["resolved_by"] == "libpq"
    report = check_app(code, dsn)
    assert causes(report) == []
    assert report["resolved_by"] is None


def test_resolver_that_blocks(check_app):
    """Gevent's blocking resolver is reported."""
    report = check_app(GEVENT + PSYCOGREEN.format(""), GEVENT_RESOLVER="block")
    assert causes(report) == ["name resolution blocks"]
    assert "GEVENT_RESOLVER" in report["problems"][0]


REMEDIES = {
    "which looks up host names off the loop": "import eventlet; eventlet.monkey_patch()",
    "pass no resolve_hosts=False": GEVENT + PSYCOGREEN.format("resolve_hosts=False"),
}


@pytest.mark.parametrize("remedy", REMEDIES)
def test_remedy_for_the_name_resolution(check_app, remedy):
    """The remedy for name resolution depends on the installed callback."""
    [problem] = check_app(REMEDIES[remedy])["problems"]
    assert problem.startswith("name resolution blocks: libpq looks up")
    assert remedy in problem


def test_service_file(check_app, server, tmp_path):
    """A name from a service file, which libpq looks up, is reported."""
    (tmp_path / "services").write_text(
        f"[here]\nhost=localhost\nport={server.port}\nuser=postgres\ndbname=postgres\n"
    )
    services = {"PGSERVICEFILE": str(tmp_path / "services")}
    report = check_app(GEVENT + PSYCOGREEN.format(""), "service=here", **services)
    [problem] = report["problems"]
    assert problem.startswith("name resolution blocks: libpq looks up")
    assert "not in a service file" in problem


SLOW_RESOLVER = """
import _socket
resolve = _socket.getaddrinfo
def slow(*args):
    monkey.get_original("time", "sleep")(1.2)
    return resolve(*args)
_socket.getaddrinfo = slow
"""


def test_stall_while_connecting(check_app):
    """A stall while connecting is not reported as a stall of the callback."""
    code = (
        "from gevent import monkey\n" + SLOW_RESOLVER + GEVENT + PSYCOGREEN.format("")
    )
    report = check_app(code, GEVENT_RESOLVER="block")
    assert causes(report) == ["name resolution blocks"]
    assert report["connect_stall"] > 1.1
    report = check_app(code)
    assert causes(report) == []
    assert report["connect_stall"] < 1.1


SLOW_LIBPQ = """
import time
import psycopg2
connect = psycopg2._connect
def slow(*args, **options):
    monkey.get_original("time", "sleep")(1.2)
    return connect(*args, **options)
psycopg2._connect = slow
"""


def test_stall_of_libpq_while_connecting(check_app):
    """A stall of libpq while connecting, such as by Kerberos, is a remark."""
    report = check_app(GEVENT + SLOW_LIBPQ + PSYCOGREEN.format(""))
    assert report["verdict"] == "cooperative"
    [remark] = report["remarks"]
    assert remark.startswith("connecting blocks: the loop stood still for ")


def test_callback_of_eventlets_own(check_app, dsn):
    """Eventlet's own callback is cooperative, but ignores connect_timeout."""
    report = check_app("import eventlet; eventlet.monkey_patch()", dsn)
    assert report["verdict"] == "cooperative"
    assert report["connect_timeout_honoured"] is False
    assert "does not honour connect_timeout" in report["remarks"][0]


WORKERS = {
    "green": (
        ("-k", "gevent", "-c", "python:psycogreen.integrations.gunicorn_conf"),
        "check_app:app",
        [],
    ),
    "without psycogreen": (
        ("-k", "gevent"),
        "check_app:app",
        ["wait callback missing"],
    ),
    "with threads": (
        ("-k", "gthread"),
        "check_app:app",
        ["wait callback missing", "monkey patch missing"],
    ),
    "green, in a native thread": (
        ("-k", "gevent", "-c", "python:psycogreen.integrations.gunicorn_conf"),
        "native_thread_app:app",
        ["blocking thread"],
    ),
}


@pytest.mark.parametrize("worker", WORKERS)
def test_in_a_worker(dsn, worker):
    """The check inside a request of a worker reports the problems of the worker."""
    options, app, expected = WORKERS[worker]
    with gunicorn(app, *options, env={"DSN": dsn}) as server:
        report = json.loads(request(f"{server.url}/check").body)
    assert causes(report) == expected
    assert report["cooperative"] == (not expected)


def test_blocking_in_words(command, dsn, tmp_path):
    """The verdict comes first, the problem and its remedy are wrapped."""
    (tmp_path / "patching.py").write_text(GEVENT)
    result = command("check", dsn, "--app=patching:app", *QUICK)
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    took = "2 concurrent queries of 1 s took "
    assert lines[0].startswith(f"BLOCKING: wait callback missing, {took}")
    assert "  wait callback    none" in lines
    assert "  name resolution  nothing to resolve" in lines
    assert "  connect_timeout  not tried" in lines
    assert any(line.startswith("problem: wait callback missing:") for line in lines)
    assert any(
        line.startswith("remedy: call psycogreen.patch_psycopg()") for line in lines
    )
    assert "If a server patches this application" in lines[-2]
    assert max(map(len, lines)) < 80


PASSWORDS = {
    "words": "host={host} port={port} user=with_password dbname=postgres password=right",
    "URL": "postgresql://with_password:right@{host}:{port}/postgres",
    "SQLAlchemy's URL": "postgresql+psycopg2://with_password:right@{host}:{port}/postgres",
}


@pytest.mark.parametrize("form", PASSWORDS)
def test_password_is_not_shown(command, server, form):
    """A connection string is shown without its password, whatever its form."""
    given = PASSWORDS[form].format(host=server.host, port=server.port)
    result = command("check", given, *QUICK)
    assert result.returncode == 0, result.stderr
    assert "user=with_password" in result.stdout
    assert "right" not in result.stdout + result.stderr


UNCHECKED = {
    "not a connection string": (("hots=example",), 'invalid connection option "hots"'),
    "nobody there": (("host=127.0.0.1 port=1",), "Connection refused"),
    "no such host": (("host=no-such-host.invalid",), "could not translate host name"),
    "DSN and --embedded": (("dbname=x", "--embedded"), "either DSN or --embedded"),
    "no such module": (("--app=no_such_module",), "--app 'no_such_module' cannot be"),
    "a module that exits": (
        ("--app=exiting",),
        "--app 'exiting' cannot be imported: SystemExit: no",
    ),
    "no server to start": (("--embedded",), "PSYCOGREEN_POSTGRES='none': it must be"),
}


@pytest.mark.parametrize("case", UNCHECKED)
def test_cannot_check(command, tmp_path, case):
    """If the check is impossible, one line gives the reason, and the status is 2."""
    arguments, expected = UNCHECKED[case]
    (tmp_path / "exiting.py").write_text("raise SystemExit('no configuration')")
    result = command("check", *arguments, PSYCOGREEN_POSTGRES="none")
    assert (result.returncode, result.stdout) == (2, "")
    [*steps, line] = result.stderr.splitlines()
    assert line.startswith("psycogreen: cannot check: ")
    assert expected in line
    assert all(step.startswith("psycogreen: ") for step in steps)


SERVING = """
from gevent import monkey; monkey.patch_all()
from gevent.pywsgi import WSGIServer
while True:
    try:
        WSGIServer(("127.0.0.1", 0), None).serve_forever()
    except Exception:
        pass
"""


def test_application_that_serves(tmp_path):
    """The import of --app's module has a time limit, whose error has a hint."""
    (tmp_path / "serving.py").write_text(SERVING)
    code = (
        "import sys; from psycogreen._check import command; command._APP_LIMIT = 2\n"
        "sys.exit(command.main(['check', '--app=serving']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert "after 2 s the import of --app has not ended" in line
    assert "-- gunicorn -k gevent app:app" in line


@pytest.fixture
def silent():
    """A server that takes connections and never answers: its connection string."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"host=127.0.0.1 port={listener.getsockname()[1]} user=x"


@pytest.mark.parametrize("limit", ["", "3"])
def test_silent_server(command, silent, limit):
    """A database that does not answer fails after 10 seconds or connect_timeout."""
    begin = time.monotonic()
    env = {"PGCONNECT_TIMEOUT": limit} if limit else {}
    result = command("check", silent, **env)
    took = time.monotonic() - begin
    assert result.returncode == 2
    assert "timeout expired" in result.stderr.splitlines()[-1]
    assert took < 60
    assert took > (2.9 if limit else 9.9)


def test_ctrl_c(silent):
    """Ctrl-C ends the check immediately, without a traceback."""
    command = [sys.executable, "-P", "-m", "psycogreen", "check", silent]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        first = process.stderr.readline()
        time.sleep(0.2)  # to be connecting
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert (first, rest) == ("psycogreen: opening 10 connections\n", "")
    assert process.returncode == -signal.SIGINT


def test_password_in_a_wrong_connection_string(command):
    """The error for an invalid connection string quotes no part of a password."""
    result = command("check", "postgres://a:5432/secret@b/d")
    assert result.returncode == 2
    assert "invalid connection string: " in result.stderr
    assert "secret" not in result.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--queries", "0"),
        ("--queries", "many"),
        ("--seconds", "-1"),
        ("--seconds", "inf"),
    ],
)
def test_wrong_numbers(command, option, value):
    """Invalid numbers of options are refused, and shown."""
    result = command("check", f"{option}={value}")
    assert result.returncode == 2
    assert f"argument {option}: invalid positive" in result.stderr
    assert repr(value) in result.stderr


def test_unknown_framework():
    """The function refuses a framework whose loop it cannot watch."""
    with pytest.raises(ValueError, match=r"'twisted'.*gevent or eventlet"):
        psycogreen.check(framework="twisted")


@pytest.mark.parametrize(
    "number",
    [{"queries": 0}, {"seconds": 0}, {"seconds": math.inf}, {"seconds": math.nan}],
)
def test_wrong_arguments(number):
    """The function refuses a number with which nothing would be measured, and shows it."""
    [(name, value)] = number.items()
    with pytest.raises(ValueError, match=f"^{name}={value!r}: it must be "):
        psycogreen.check(framework="gevent", **number)


def test_unquoted_words(command, dsn):
    """The words of a connection string need no quotes."""
    result = command("check", *QUICK, *dsn.split())
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("cooperative: ")


def test_plain_steps(command, dsn):
    """Without a terminal each step is a line, and nothing is coloured."""
    result = command("check", dsn, *QUICK)
    assert result.stderr.splitlines() == [
        "psycogreen: opening 2 connections",
        "psycogreen: running 2 concurrent queries of 1 s",
        "psycogreen: testing connect_timeout with a server that does not answer",
    ]
    assert "\x1b" not in result.stdout


def on_terminal(*arguments, **env):
    """Return what the command prints on a terminal."""
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "psycogreen", *arguments],
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    output = b""
    with open(main, "rb", buffering=0) as reader:
        try:
            while data := reader.read(65536):
                output += data
        except OSError:  # Linux's way to say that the terminal is closed
            pass
    assert process.wait(60) == 0, output
    return output.decode()


def test_progress_on_a_terminal(dsn):
    """On a terminal each step replaces the last one, and the verdict is green."""
    output = on_terminal("check", dsn, *QUICK)
    assert "\r\x1b[Krunning 2 concurrent queries of 1 s ...\r\x1b[K" in output
    assert "\r\x1b[K\x1b[1;32mcooperative\x1b[0m: " in output


def test_no_colour(dsn):
    """NO_COLOR leaves the verdict plain."""
    assert "\r\x1b[Kcooperative: " in on_terminal("check", dsn, *QUICK, NO_COLOR="1")


def test_overview(command):
    """Without a command, the installed versions and the callback are printed."""
    result = command()
    assert result.returncode == 0, result.stderr
    rows = dict(line.split(None, 1) for line in result.stdout.splitlines())
    for name in "psycogreen", "gevent", "eventlet", "greenlet", "gunicorn":
        assert rows[name].split()[0] == version(name)
    assert rows["psycopg2"].startswith(psycopg2.__version__.split()[0])
    assert "blocks" not in rows["psycopg2"]
    assert "psycogreen's plugin: off" in rows["gevent"]
    assert "its own green workers: gevent" in rows["gunicorn"]
    assert {"Python", "libpq", "uWSGI"} <= rows.keys()


def test_overview_of_what_is_missing(command, tmp_path):
    """The overview says "not found" for missing programs."""
    result = command(PATH=str(tmp_path))
    assert re.search(r"^uWSGI +not found$", result.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("program", "shown"),
    [
        ("#!/bin/sh\nsleep 60", "unknown"),
        ("#!/no/such/interpreter", "unknown"),
        ("#!/bin/sh\necho 2.0.99", "2.0.99"),
    ],
    ids=["hangs", "cannot run", "runs"],
)
def test_overview_of_a_uwsgi(command, tmp_path, program, shown):
    """A uWSGI that hangs or cannot run is found, of an unknown version."""
    path = tmp_path / "uwsgi"
    path.write_text(program)
    path.chmod(0o755)
    result = command(PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert result.returncode == 0, result.stderr
    assert re.search(rf"^uWSGI +{shown} +{path}$", result.stdout, re.MULTILINE)


def test_reader_that_has_read_enough(dsn):
    """With ``| head -1`` there is no traceback, and the exit status is the verdict's."""
    for arguments, expected in ((), 0), (("check", dsn, "--app=os", *QUICK), 1):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "wb") as output:
            result = subprocess.run(
                [sys.executable, "-P", "-m", "psycogreen", *arguments],
                stdout=output,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
                check=False,
            )
        assert (result.returncode, result.stderr) == (expected, "")


def test_without_psycopg2(tmp_path):
    """Without psycopg2 the exit status is 2, and there is no traceback."""
    (tmp_path / "psycopg2.py").write_text("raise ModuleNotFoundError(name='psycopg2')")
    result = subprocess.run(
        [sys.executable, "-P", "-m", "psycogreen", "check"],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert "cannot check" in line
    assert "pip install psycopg2-binary" in line


def test_default_database(command, server):
    """Without a connection string the report names the server that libpq found."""
    found = {"PGHOST": server.host, "PGPORT": str(server.port), "PGUSER": "postgres"}
    result = command("check", *QUICK, **found)
    assert result.returncode == 0, result.stderr
    database = f"dbname=postgres host={server.host} port={server.port}"
    assert re.search(
        f"^  database +user=postgres {database}$", result.stdout, re.MULTILINE
    )


@pytest.mark.parametrize(
    ("dsn", "hint"),
    [
        ("mydatabase", "dbname=mydatabase"),
        ("mysql://root:secret@host/name", "postgresql://"),
    ],
)
def test_hint(command, dsn, hint):
    """A common mistake in the connection string gets a hint."""
    result = command("check", dsn)
    assert result.returncode == 2
    assert hint in result.stderr
    assert "secret" not in result.stderr


def test_blocking_though_queries_overlap(command, dsn, tmp_path):
    """The first line omits the time of the queries if it contradicts the verdict."""
    (tmp_path / "patching.py").write_text(PSYCOGREEN.format("'gevent'"))
    result = command("check", dsn, "--app=patching", *QUICK)
    assert result.stdout.splitlines()[0] == "BLOCKING: monkey patch missing"


def test_codes(check_app):
    """In the JSON each finding has a code, a cause and a remedy."""
    [first, *_] = check_app(GEVENT)["findings"]
    assert first == {
        "code": "wait-callback-missing",
        "cause": "psycopg2 stops the loop with every query",
        "remedy": "call psycogreen.patch_psycopg() in each worker process",
        "blocks": True,
    }


def test_version(command):
    """--version prints only the version."""
    assert command("--version").stdout == f"psycogreen {psycogreen.__version__}\n"
