"""Fixtures of the contract suite: it runs in a process that is monkey-patched."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import frameworks
import psycopg2
import pytest
from psycopg2.extensions import set_wait_callback

import psycogreen


@pytest.fixture(scope="session")
def green() -> frameworks.Framework:
    """The framework under test."""
    return frameworks.current()


@pytest.fixture(autouse=True)
def _patched(green: frameworks.Framework) -> Iterator[None]:
    """psycopg2 as an application has it: patched, with the framework found out."""
    set_wait_callback(None)
    psycogreen.patch_psycopg()
    yield
    set_wait_callback(None)


@pytest.fixture
def dsn() -> str:
    """The server's connection string."""
    return frameworks.DSN


@pytest.fixture
def connect(dsn: str) -> Iterator[Callable[..., psycopg2.extensions.connection]]:
    """`psycopg2.connect` to the server; closes what it has opened."""
    opened = []

    def connect(**options: object) -> psycopg2.extensions.connection:
        opened.append(psycopg2.connect(dsn, **options))
        return opened[-1]

    yield connect
    for conn in opened:
        conn.close()


@pytest.fixture
def conn(connect: Callable[..., object]) -> object:
    """An open connection."""
    return connect()
