"""The newcomer's walk: every command of the README and the documentation is run.

Each page begins in an empty environment, with the built wheel and a PostgreSQL server.
What a command prints is compared with what the page shows. ``make walk`` runs this.
"""

import contextlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from pages import PAGES, code_blocks
from services import find_redis, redis
from walk import Shell, commands, environment

EXAMPLES = ROOT / "examples"

# An application that tells what it waits with, for pages that take one for granted.
APP = """
import psycopg2

def app(environ, start_response):
    import psycogreen

    connection = psycopg2.connect("")
    connection.cursor().execute("select pg_sleep(0.1)")
    connection.close()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(psycogreen.status().framework).encode()]

if __name__ == "__main__":
    import os
    from wsgiref.simple_server import make_server

    make_server("127.0.0.1", int(os.environ["PORT"]), app).serve_forever()
"""

# A server of the reader's own that has forgotten psycogreen.
MYSERVER = "from gevent import monkey; monkey.patch_all()\n"

# What a reader puts in the place of a name, and the walk does.
REPLACED = {
    "host=db.example.com user=me dbname=mine": "dbname=postgres",
    "postgresql://me@db.example.com/mine": "postgresql://localhost/postgres",
    "check DSN": "check dbname=postgres",
}

# Pages about an application that has been installed already.
INSTALLED = ("monitoring.rst", "troubleshooting.rst")

# Examples with libraries that nothing else needs: a page's install line has them.
ONLY_HERE = [
    "ddtrace_example",
    "green_tests",
    "opentelemetry_example",
    "socketio_app",
    "sqlalchemy_app",
]

WALKED = [
    path for path in PAGES if any(not command.not_walked for command in commands(path))
]
REPOSITORY = [
    pytest.param(command, id=f"{path.name}-{n}")
    for path in PAGES
    for n, command in enumerate(commands(path))
    if command.not_walked
]


def given(path):
    """Return the application that a page takes for granted, or shows."""
    if path.name == "README.rst":
        return next(block for block in code_blocks(path, "python") if "Flask" in block)
    return APP


@pytest.mark.full
@pytest.mark.parametrize("path", WALKED, ids=lambda path: path.name)
def test_page(path, distributions, tmp_path, libpq):
    """The commands of a page succeed, one after the other, and print what it shows."""
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    for example in EXAMPLES.glob("*.py"):
        shutil.copy(example, tmp_path)
    (tmp_path / "app.py").write_text(given(path))
    (tmp_path / "myserver.py").write_text(MYSERVER)
    (tmp_path / "proj.py").write_text("from celery_app import app\n")
    env = {**environment(tmp_path, distributions[0].parent), **libpq}
    with contextlib.ExitStack() as stack:
        if path.name == "celery.rst":
            if not find_redis():
                pytest.skip("there is no redis-server: install it")
            env["REDIS_URL"] = stack.enter_context(redis())
        shell = stack.enter_context(Shell(tmp_path, env, REPLACED))
        walk(shell, path)


@pytest.mark.parametrize("example", ONLY_HERE)
def test_example_is_walked(example):
    """A page has the command that runs the example."""
    texts = [command.text for path in WALKED for command in commands(path)]
    assert any(example in text for text in texts)


def walk(shell, path):
    """Run a page's commands; every server answers, in its framework's way."""
    todo = [command for command in commands(path) if not command.not_walked]
    if path.name != "README.rst":  # which makes an environment itself
        do(shell, "python3 -m venv venv && . venv/bin/activate")
    if path.name in INSTALLED:
        wanted = "'psycogreen[gevent,gunicorn]>=2.0.0rc1'"
        do(shell, f"pip install {wanted} psycopg2-binary")
    for command in todo:
        shell.run(command)
        if command.serves and re.search(r"\bapp(:app|\.py)", command.text):
            answer = shell.get()
            assert answer in ("gevent", "eventlet") or "second" in answer
        if command.serves and "psycogreen.integrations" in command.text:
            shell.await_log("wait callback installed")
    shell.stop_server()


def do(shell, text):
    """Run a command that no page shows."""
    status, printed = shell.do(text)
    assert status == 0, printed


@pytest.mark.parametrize("command", REPOSITORY)
def test_command_of_the_repository(command):
    """What the walk leaves out names things that exist.

    They are targets of the Makefile, or tests that are found, or packages that CI
    installs. `walk.NOT_WALKED` has the reasons.
    """
    words = shlex.split(command.text.replace("\\\n", " "), comments=True)
    words = [word for word in words if "=" not in word or "/" in word]
    match words:
        case ["make", target]:
            subprocess.run(
                ["make", "--dry-run", target],
                cwd=ROOT,
                check=True,
                stdout=subprocess.DEVNULL,
            )
        case [".venv/bin/pytest", *selection]:
            assert_found(selection)
        case [".venv/bin/python", "tools/newest.py", _, *selection]:
            assert_found(selection)
        case ["apt-get", "install", *packages]:
            assert_installed_by_ci(packages)
        case _:
            pytest.fail(f"nothing checks {command.text!r}")


def assert_found(selection):
    """Assert that pytest finds tests by these words."""
    subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *selection],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )


def assert_installed_by_ci(packages):
    """Assert that CI installs these packages, which may be in braces."""
    script = (ROOT / ".ci" / "run").read_text()
    for package in packages:
        match re.fullmatch(r"([^{]*)\{(.*)\}(.*)", package):
            case None:
                names = [package]
            case found:
                names = [found[1] + name + found[3] for name in found[2].split(",")]
        for name in names:
            assert name in script, name
