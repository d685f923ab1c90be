"""Fixtures of the tests: a PostgreSQL server, and processes that use it."""

from __future__ import annotations

import functools
import os
import re
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import cache
import psycopg2
import pytest
import trustme
import uwsgi_builds
from commands import run
from servers import HttpServer, uwsgi

from psycogreen._check.postgres import Server, postgres

TESTS = Path(__file__).parent
ROOT = TESTS.parent

# The tests marked ``full`` that this run leaves out: their names without the parameters,
# and the reasons that their marks give.
LEFT_OUT = pytest.StashKey[list[tuple[str, str]]]()

# Set this variable where everything that the tests need must be installed, as in CI: a
# test that would be skipped because something is missing then fails.
EXPECT_ALL = "PSYCOGREEN_TEST_EXPECT_ALL"
MISSING = re.compile(r"install|there is no |built without|could not import")


# The variable of eventlet's that leaves out its own resolver if it is "yes".
NO_RESOLVER = "EVENTLET_NO_GREENDNS"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option to run all tests."""
    parser.addoption(
        "--full", action="store_true", help="also run the tests marked `full`"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Let the processes that import eventlet start in half the time, but in a full run.

    They leave out eventlet's own resolver, for which eventlet imports dnspython, and this
    cryptography. psycogreen looks host names up with the system's resolver instead. The
    processes that run the contract suite have eventlet's resolver all the same.
    """
    if not config.option.full:
        os.environ[NO_RESOLVER] = "yes"


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Choose the tests that run, and the order in which they begin.

    Those marked ``full`` are for a full run only.
    """
    items.sort(key=_place)
    if config.option.full:
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    if left_out:
        config.stash[LEFT_OUT] = [_left_out(item) for item in left_out]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("full")]


def _left_out(item: pytest.Item) -> tuple[str, str]:
    """Return the name of a test that is left out, and the reason if the mark gives one."""
    mark = item.get_closest_marker("full")
    return item.nodeid.partition("[")[0], mark.kwargs.get("reason", "")


# The tests that start first in a parallel run: those that set up the uWSGIs, which others
# wait for, and those that take long but sleep most of the time.
FIRST = [
    r"tests/test_uwsgi\.py::(test_overview|test_concurrent_queries\[gevent-debian\])",
    r"tests/test_contract\.py",
]


def _place(item: pytest.Item) -> int:
    """Return the place of a test's group in the order; the others come last."""
    found = (n for n, each in enumerate(FIRST) if re.match(each, item.nodeid))
    return next(found, len(FIRST))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[
    None, pytest.TestReport, pytest.TestReport
]:
    """Turn a skip into a failure if the missing program is expected."""
    report = yield
    if EXPECT_ALL in os.environ:
        reasons = [report.longrepr[-1]] if report.skipped else []
        if report.when == "call":
            reasons += skipped_cases(report).values()
        for reason in reasons:
            if MISSING.search(reason):
                report.outcome = "failed"
                report.longrepr = f"expected here ({EXPECT_ALL}): {reason}"
    return report


# The property of a test that runs several cases itself: the names of those that were
# skipped, with the reasons.
SKIPPED_CASES = "skipped cases"

# The word in pytest's summary for such a test if the other cases passed.
PARTIAL = "passed in part"


def skipped_cases(report: pytest.TestReport) -> dict[str, str]:
    """Return the skipped cases of a test that ran several itself, with the reasons."""
    return dict(getattr(report, "user_properties", ())).get(SKIPPED_CASES, {})


def pytest_report_teststatus(
    report: pytest.CollectReport | pytest.TestReport,
) -> tuple[str, str, str] | None:
    """Count a test apart if some of its cases were skipped and the others passed."""
    if report.when == "call" and report.passed and skipped_cases(report):
        return PARTIAL, "p", "PASSED, some cases SKIPPED"
    return None


# Tests that share an expensive fixture: they run in one process.
TOGETHER = re.compile(
    r"tests/("
    r"test_contract\.py::test_contract\[\w+-\w+"
    r"|test_same_answers\.py::test_same_answer\[gunicorn-\w+"
    r"|(test_benchmarks|psycopg2suite/test_psycopg2)\.py"
    r")"
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Give each process the next test, or the next of those that belong together."""
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = False  # the order is chosen above

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            together = TOGETHER.match(nodeid)
            return together[0] if together else nodeid

    return Scheduling(config, log)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Report the tests that this process has left out to the main process."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Store the tests that a worker of pytest-xdist has left out: all leave out the same."""
    if left_out := getattr(node, "workeroutput", {}).get("left_out"):
        node.config.stash[LEFT_OUT] = left_out


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Name the skipped cases, and the tests that this run left out."""
    if partial := terminalreporter.stats.get(PARTIAL, []):
        terminalreporter.section("cases skipped in tests that passed")
        for report in partial:
            terminalreporter.line(report.nodeid)
            for name, reason in skipped_cases(report).items():
                terminalreporter.line(f"    {name.partition('::')[2]}: {reason}")
    left_out = config.stash.get(LEFT_OUT, [])
    if left_out:
        terminalreporter.section(f"{len(left_out)} left out; --full runs them")
        for (name, reason), cases in Counter(map(tuple, left_out)).items():
            line = f"{name} ({cases})" if cases > 1 else name
            terminalreporter.line(f"{line}: {reason}" if reason else line)


# The server asks this role for a password.
HBA = ["host all with_password 127.0.0.1/32 scram-sha-256"]


def make_role(server: Server) -> None:
    """Make the role that is asked for a password."""
    conn = psycopg2.connect(server.dsn)
    conn.cursor().execute("create role with_password login password 'right'")
    conn.commit()
    conn.close()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A PostgreSQL server for all tests."""
    with postgres(hba=HBA) as server:
        make_role(server)
        yield server


@pytest.fixture(scope="session")
def dsn(server: Server) -> str:
    """Its connection string."""
    return server.dsn


@pytest.fixture
def libpq(server: Server) -> dict[str, str]:
    """The environment variables by which libpq finds the server, as the examples expect."""
    return {"PGHOST": server.host, "PGPORT": str(server.port), "PGUSER": "postgres"}


@pytest.fixture
def active(dsn: str) -> Iterator[Callable[[str], int]]:
    """Return how many queries like the pattern PostgreSQL is running."""
    conn = psycopg2.connect(dsn)
    conn.autocommit = True
    cursor = conn.cursor()

    def active(pattern: str) -> int:
        cursor.execute(
            "select count(*) from pg_stat_activity where state = 'active'"
            " and pid <> pg_backend_pid() and query like %s",
            (pattern,),
        )
        return cursor.fetchone()[0]

    yield active
    conn.close()


@pytest.fixture
def examples() -> Path:
    """The folder of the examples."""
    return TESTS.parent / "examples"


@pytest.fixture
def python(server: Server) -> Callable[..., str]:
    """Run Python code, or a file, in a new process; return what it prints.

    Warnings are errors there, except eventlet's own deprecation.
    """

    def python(
        code: str | Path, *arguments: str, timeout: float = 120, **env: str
    ) -> str:
        program = [str(code)] if isinstance(code, Path) else ["-c", code]
        result = subprocess.run(
            [sys.executable, "-P", "-W", "error", *program, *arguments],
            env={**os.environ, **environment(server), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert result.returncode == 0, result.stdout
        return result.stdout

    return python


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel, built from the sdist, and the sdist; built once for a whole run."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # which the workers share
    folder /= "distributions"
    with cache.locked():
        if not folder.exists():
            run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    [wheel] = folder.glob("*.whl")
    [sdist] = folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """A certificate authority of the tests' own."""
    return trustme.CA()


@pytest.fixture(scope="session")
def certificate(
    authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str]:
    """Options for gunicorn: TLS on this machine."""
    folder = tmp_path_factory.mktemp("certificate")
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    return f"--certfile={folder / 'cert.pem'}", f"--keyfile={folder / 'key.pem'}"


@pytest.fixture(scope="session")
def tls(authority: trustme.CA) -> ssl.SSLContext:
    """The client's side of TLS, which trusts that authority."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def environment(server: Server) -> dict[str, str]:
    """Return the variables by which a process finds the server and the tools."""
    root = TESTS.parent
    folders = [root / "tools", root / "examples", TESTS, TESTS / "contract"]
    return {
        "DSN": server.dsn,
        "PSYCOGREEN_TEST_DSN": server.dsn,
        "PSYCOGREEN_TEST_UNIX_DSN": server.unix_dsn,
        # Silences eventlet's deprecation warning and changes nothing else. (-W
        # cannot: the message begins with a line break, the category is eventlet's.)
        "EVENTLET_TESTS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
    }


@pytest.fixture
def find_uwsgi() -> Callable[[str], uwsgi_builds.Build]:
    """Find the build of that name, or skip and say what is missing."""

    def find(name: str) -> uwsgi_builds.Build:
        try:
            return _find_build(name)
        except uwsgi_builds.Unavailable as ex:
            pytest.skip(str(ex))

    return find


@pytest.fixture
def serve_uwsgi(
    server: Server, find_uwsgi: Callable[[str], uwsgi_builds.Build]
) -> Callable[..., AbstractContextManager[HttpServer]]:
    """`servers.uwsgi` with the build of that name."""

    def serve(name: str, engine: str | None, *options: str, **env: str):
        return uwsgi(find_uwsgi(name), engine, *options, env={"DSN": server.dsn, **env})

    return serve


@functools.cache  # each is made, or brought up to date, once
def _find_build(name: str) -> uwsgi_builds.Build:
    match name:
        case "pypi":
            return uwsgi_builds.current()
        case "debian":
            return uwsgi_builds.debian()
        case version:
            return uwsgi_builds.other(version)
