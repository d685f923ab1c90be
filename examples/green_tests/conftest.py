"""Tests that run green: pytest imports this file before any test module."""

from gevent import monkey

monkey.patch_all()

import psycogreen

psycogreen.patch_psycopg()

from collections.abc import Iterator

import psycopg2
import pytest
from psycopg2.extensions import connection


@pytest.fixture(scope="session", autouse=True)
def green() -> None:
    """Try out once whether queries let others run."""
    report = psycogreen.check("", queries=3, seconds=0.2)
    assert report.cooperative, report.problems


@pytest.fixture
def conn() -> Iterator[connection]:
    """Lend a connection whose changes are undone after the test."""
    conn = psycopg2.connect("")
    yield conn
    conn.close()
