"""Connecting in the way of SQLAlchemy and of Django."""

import socket

import pytest
import sqlalchemy
from psycopg2.extensions import parse_dsn

from psycogreen._interface import readback


@pytest.fixture(autouse=True)
def _beside_asyncio(green, monkeypatch):
    """Let Django connect under eventlet's asyncio hub.

    It refuses to wherever an asyncio loop runs in the thread, unless told.
    """
    if "asyncio" in green.loop_name():
        monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")


@pytest.fixture
def silent_port():
    """A port where the system accepts connections, and nothing answers."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(10)
        yield sock.getsockname()[1]


def django_connection(port):
    """Return Django's connection to the server at *port*, by host name."""
    import django
    from django.conf import settings
    from django.db import ConnectionHandler

    if not settings.configured:
        settings.configure()
        django.setup()
    default = {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": "localhost",
        "PORT": port,
        "NAME": "postgres",
        "USER": "postgres",
        "OPTIONS": {"connect_timeout": 1},
    }
    return ConnectionHandler({"default": default})["default"]


def sqlalchemy_engine(port):
    """Return SQLAlchemy's engine for the server at *port*, by host name."""
    return sqlalchemy.create_engine(
        f"postgresql+psycopg2://postgres@localhost:{port}/postgres",
        connect_args={"connect_timeout": 1},
    )


def test_django(green, dsn):
    """A connection of Django resolves its host and waits with psycogreen."""
    connection = django_connection(parse_dsn(dsn)["port"])
    with green.ticking(), connection.cursor() as cursor:
        cursor.execute("select 42, pg_sleep(0.1)")
        assert cursor.fetchone()[0] == 42
    assert readback.is_noted(connection.connection)
    connection.close()


def test_django_connect_timeout(green, silent_port):
    """Django's connect_timeout holds, and the error is Django's own."""
    from django.db import OperationalError

    connection = django_connection(silent_port)
    with green.ticking(), pytest.raises(OperationalError, match="timeout expired"):
        connection.ensure_connection()


def test_sqlalchemy(green, dsn):
    """A connection of SQLAlchemy resolves its host and waits with psycogreen."""
    engine = sqlalchemy_engine(parse_dsn(dsn)["port"])
    with green.ticking(), engine.connect() as connection:
        row = connection.execute(sqlalchemy.text("select 42, pg_sleep(0.1)")).one()
        assert row[0] == 42
        assert readback.is_noted(connection.connection.dbapi_connection)
    engine.dispose()


def test_sqlalchemy_connect_timeout(green, silent_port):
    """SQLAlchemy's connect_timeout holds, and the error is SQLAlchemy's own."""
    engine = sqlalchemy_engine(silent_port)
    with (
        green.ticking(),
        pytest.raises(sqlalchemy.exc.OperationalError, match="timeout expired"),
    ):
        engine.connect()


def test_sqlalchemy_interrupted(green, dsn):
    """SQLAlchemy's pool drops a connection whose query was interrupted."""
    engine = sqlalchemy_engine(parse_dsn(dsn)["port"])
    sleep = sqlalchemy.text("select pg_sleep(60)")
    with pytest.raises(green.Timeout), green.Timeout(0.2), engine.connect() as conn:
        conn.execute(sleep)
    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("select 42")).scalar() == 42
    engine.dispose()
