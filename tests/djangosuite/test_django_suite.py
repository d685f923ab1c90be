"""Django's own tests, with psycogreen's backend and its pool."""

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import django
import pytest
from conftest import TESTS, environment

from psycogreen._check.postgres import postgres

CACHE = TESTS.parent / ".cache"
LABELS = [
    "backends",
    "transactions",
    "transaction_hooks",
    "select_for_update",
    "queries",
    "bulk_create",
    "postgres_tests",
    "migrations",
    "schema",
]
POOL = {"min_size": 0, "max_size": 10, "timeout": 20}

# What is not run with a pool, and why.
_AGE = "it sets CONN_MAX_AGE, which is refused beside a pool"
_CHECKS = "Django skips it with any pool, which checks connections by itself"
_HEALTH = "backends.base.test_base.ConnectionHealthChecksTests.test_"
_POSTGRES = "backends.postgresql.tests.Tests.test_"
EXCLUDED = {
    f"{_HEALTH}health_checks_disabled": _AGE,
    f"{_HEALTH}health_checks_enabled": _CHECKS,
    f"{_HEALTH}health_checks_enabled_errors_occurred": _AGE,
    f"{_HEALTH}set_autocommit_health_checks_enabled": _CHECKS,
    f"{_POSTGRES}connect_pool_setting_ignored_for_psycopg2": (
        "it expects the option to be refused with psycopg2, as Django does"
    ),
}

pytestmark = pytest.mark.full


@pytest.fixture(scope="session")
def source():
    """Django's source distribution, of the installed version: it has the tests."""
    version = django.__version__
    folder = CACHE / f"django-{version}"
    if not folder.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        what = ["--no-binary=:all:", f"--dest={CACHE}", f"django=={version}"]
        subprocess.run([*pip, *what], check=True)
        [archive] = CACHE.glob(f"[Dd]jango-{version}.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(CACHE, filter="data")
        if archive.name.startswith("D"):  # until 5.0
            archive.with_name(f"Django-{version}").rename(folder)
    return folder


@pytest.fixture(scope="session")
def run(source, tmp_path_factory):
    """Run the tests with a backend; return the outcome of each, and the output."""
    outcomes = tmp_path_factory.mktemp("django") / "outcomes.json"
    with postgres() as server:
        env = {
            **os.environ,
            **environment(server),
            "PYTHONPATH": str(Path(__file__).parent),
            "OUTCOMES": str(outcomes),
            "EXCLUDED": json.dumps(list(EXCLUDED)),
        }

        def run(engine, *interpreter, pool=None, **more):
            options = ["--settings=suite_settings", "--parallel=1", "--noinput"]
            command = [*interpreter, "runtests.py", *options, *LABELS]
            result = subprocess.run(
                [sys.executable, *command],
                cwd=source / "tests",
                env={**env, "ENGINE": engine, "POOL": json.dumps(pool), **more},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=1500,
                check=False,
            )
            # Not 0 either where tests have failed: then it says how many.
            assert result.returncode == 0 or "FAILED (" in result.stdout, result.stdout
            return json.loads(outcomes.read_text()), result.stdout

        yield run


def test_suite(run, capsys):
    """Each test has the outcome that it has with Django's backend, which blocks."""
    expected, _ = run("django.db.backends.postgresql")
    found, output = run(
        "psycogreen.integrations.django",
        *("-m", "gevent.monkey"),
        pool=POOL,
        PSYCOGREEN="gevent",
    )
    with capsys.disabled():
        print(f"\nDjango's own tests, {len(found)} of them: {_summary(output)}")
    differing = {
        test: (outcome, found.get(test))
        for test, outcome in expected.items()
        if found.get(test) != outcome
    }
    assert not differing, output
    assert found.keys() == expected.keys()
    assert list(expected.values()).count("passed") > 2000


def _summary(output):
    return re.findall(r"^(?:OK|FAILED).*", output, re.MULTILINE)[-1]
