"""uGreen and its C extension."""

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from load import request, request_all
from servers import ROOT
from test_uwsgi import (
    APP,
    INSTALLED,
    LEFT_ALONE,
    SPAWNED,
    assert_alive,
    other_pythons,
)

import psycogreen

SMALL = ("--async=100", "--ugreen")  # without what psycogreen recommends
WARNINGS = r"psycogreen: warning: (.*)"

# With which uGreen differs: the one that runs the tests may be among them.
newest_pythons = ["pypi"] if sys.version_info >= (3, 14) else []

each_python = pytest.mark.parametrize("build", ["pypi", *other_pythons])


@each_python
@pytest.mark.parametrize("how", ["json", "attribute", "sort"])
def test_endless_recursion(serve_uwsgi, build, how):
    """With the recommended stack size endless recursion raises RecursionError."""
    with serve_uwsgi(build, "ugreen", APP) as server:
        urls = [f"{server.url}/exhausted/x/{how}", f"{server.url}/plain/x/0.1"] * 5
        results = request_all(urls)
        assert [result.body for result in results] == ["RecursionError", "x"] * 5
        assert_alive(server)


@pytest.mark.parametrize(
    "build", [*newest_pythons, pytest.param("3.14", marks=pytest.mark.full)]
)
def test_bounds_are_known(serve_uwsgi, build):
    """From Python 3.14 on bound_stack() makes small stacks safe too."""
    with serve_uwsgi(build, None, *SMALL, APP) as server:
        urls = [f"{server.url}/exhausted/x/json", f"{server.url}/plain/x/0.1"] * 20
        results = request_all(urls)
        assert [result.body for result in results] == ["RecursionError", "x"] * 20
        assert_alive(server)


def test_warnings(serve_uwsgi):
    """Small stacks and unbuffered bodies cause one warning each."""
    with serve_uwsgi("pypi", None, *SMALL, "--master", APP) as server:
        server.await_line(INSTALLED)
        stacks, body = server.matches(WARNINGS)
        page = os.sysconf("SC_PAGE_SIZE")
        assert "stacks are 256 KB" in stacks[1]
        assert f"set ugreen-stacksize = {8 * 1024 * 1024 // page}" in stacks[1]
        assert "set post-buffering = 65536" in body[1]


def test_no_warnings(serve_uwsgi):
    """The recommended options cause no warning."""
    with serve_uwsgi("pypi", "ugreen", "--master", APP) as server:
        server.await_line(INSTALLED)
        assert not server.matches(WARNINGS)


def post_slowly(server, token):
    """Post a body in pieces; return the body of the answer."""
    with socket.create_connection(server.address, timeout=20) as sock:
        head = f"POST /posted/{token}/0.1 HTTP/1.0\r\nContent-Length: 4000\r\n\r\n"
        sock.sendall(head.encode())
        for _ in range(4):
            time.sleep(0.05)
            sock.sendall(b"x" * 1000)
        with sock.makefile("rb") as answer:
            return answer.read().split(b"\r\n\r\n")[-1].decode()


def test_slow_bodies(serve_uwsgi):
    """Request bodies that arrive slowly do not disturb requests that query."""
    with (
        serve_uwsgi("pypi", "ugreen", APP) as server,
        ThreadPoolExecutor(20) as pool,
    ):
        bodies = pool.map(lambda token: post_slowly(server, token), range(20))
        urls = [f"{server.url}/mixed/{token}/0.1" for token in range(60)]
        results = request_all(urls, at_once=20)
        assert [result.body for result in results] == list(map(str, range(60)))
        assert list(bodies) == [f"4000 {token}" for token in range(20)]
        assert_alive(server)


def test_slow_bodies_unbuffered(serve_uwsgi):
    """If uWSGI suspends Python code itself, the worker ends and gives the reason."""
    with (
        serve_uwsgi("pypi", None, *SMALL, "--master", APP) as server,
        ThreadPoolExecutor(20) as pool,
    ):
        for token in range(10):
            pool.submit(post_slowly, server, token)
            pool.submit(request, f"{server.url}/plain/{token}/0.1")
        server.await_line("Fatal Python error: .*set uWSGI's option post-buffering")
        server.await_line(SPAWNED, count=2)


@pytest.fixture
def without_extension(tmp_path):
    """A copy of the package that comes before the installed one, without the C."""
    copy = tmp_path / "psycogreen"
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(Path(psycogreen.__file__).parent, copy, ignore=ignore)
    return copy


@pytest.mark.parametrize("kind", ["missing", "other", "broken"])
def test_without_extension(serve_uwsgi, without_extension, kind):
    """Without an extension for this Python, queries block under uGreen."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    folder = without_extension / "_uwsgi"
    if kind == "other":
        (folder / "_ugreen.cpython-39-x86_64-linux-gnu.so").touch()
    elif kind == "broken":
        (folder / f"_ugreen{suffix}").touch()
    path = f"{without_extension.parent}:{ROOT / 'tests' / 'apps'}"
    with serve_uwsgi("pypi", "ugreen", "--master", APP, PYTHONPATH=path) as server:
        [line] = server.await_line(LEFT_ALONE)
        assert "uGreen needs psycogreen's C extension" in line[3]
        assert "install a C compiler" in line[3]
        assert "pip install" in line[3]
        assert "--greenlet" in line[3]
        assert request(f"{server.url}/plain/x/0.1").body == "x"
        status = json.loads(request(f"{server.url}/status").body)
        assert (status["framework"], status["engine"]) == (None, "ugreen")


@pytest.mark.parametrize(
    "build",
    [
        *newest_pythons,
        pytest.param("3.14", marks=pytest.mark.full),
        pytest.param("3.15", marks=pytest.mark.full),
    ],
)
def test_jit(serve_uwsgi, find_uwsgi, build):
    """With CPython's JIT compiler, queries block under uGreen."""
    python = find_uwsgi(build).python
    code = "import sys; print(sys._jit.is_available())"
    if subprocess.check_output([python, "-c", code], text=True).strip() != "True":
        pytest.skip("that Python has no JIT compiler")
    with serve_uwsgi(build, "ugreen", "--master", APP, PYTHON_JIT="1") as server:
        [line] = server.await_line(LEFT_ALONE)
        assert "unset PYTHON_JIT" in line[3]
        assert request(f"{server.url}/plain/x/0.1").body == "x"


def test_extension_outside_uwsgi(python):
    """The extension can be imported only in uWSGI."""
    python(
        """if True:
        try:
            import psycogreen._uwsgi._ugreen
        except ModuleNotFoundError as ex:
            assert ex.name == "uwsgi", ex
        else:
            raise AssertionError
        """
    )


def test_foreign_suspend(python):
    """The extension refuses a uwsgi.suspend that is not uWSGI's own C function."""
    python(
        """if True:
        import sys, types
        uwsgi = types.ModuleType("uwsgi")
        uwsgi.suspend = lambda: True
        uwsgi.has_threads = 1
        sys.modules["uwsgi"] = uwsgi
        for uwsgi.suspend in (lambda: True), sys.getrefcount:
            try:
                import psycogreen._uwsgi._ugreen
            except ImportError as ex:
                assert "uwsgi.suspend is not uWSGI's own" in str(ex), ex
            else:
                raise AssertionError
        """
    )


@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler (cc)")
@pytest.mark.parametrize("optimisation", ["-O0", "-O2"])
def test_compiles_without_warnings(tmp_path, optimisation):
    """The C source of the extension compiles without warnings."""
    subprocess.run(
        [
            "cc",
            *("-Wall", "-Wextra", "-Werror", optimisation, "-fPIC", "-c"),
            *("-o", str(tmp_path / "_ugreen.o")),
            f"-I{sysconfig.get_path('include')}",
            str(ROOT / "src" / "psycogreen" / "_uwsgi" / "_ugreen.c"),
        ],
        check=True,
    )
