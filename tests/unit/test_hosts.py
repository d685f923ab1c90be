"""The hosts of a connection string: which names are resolved, and what libpq gets."""

import os
import socket

import psycopg2
import pytest
from psycopg2.extensions import get_wait_callback, parse_dsn, set_wait_callback

from psycogreen._interface.connecting import GreenConnect
from psycogreen._interface.hosts import NEXT, Host
from psycogreen._wait.deadline import error_prefix

ADDRESSES = {"one": ["10.0.0.1"], "two": ["10.0.0.2", "::2"]}


class Reached(Exception):
    """Raised in the place of libpq's attempt to connect."""


@pytest.fixture(autouse=True)
def _green(monkeypatch):
    """psycopg2 with some wait callback, and no settings in the environment."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    before = get_wait_callback()
    set_wait_callback(lambda conn: None)
    yield
    set_wait_callback(before)


@pytest.fixture
def connect():
    """Connect with `GreenConnect`; return what libpq is given, and the names resolved."""

    def connect(dsn):
        given, resolved = [], []

        def original(dsn, *args, **options):
            given.append(parse_dsn(dsn))
            raise Reached

        def resolve(name):
            resolved.append(name)
            if name not in ADDRESSES:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return ADDRESSES[name]

        with pytest.raises(Reached):
            GreenConnect(original, resolve).connect(dsn)
        return given[0], resolved

    return connect


@pytest.mark.parametrize(
    "dsn",
    [
        "dbname=x",
        "host=/run/postgresql",
        "host=@abstract",
        "host=127.0.0.1",
        "host=::1 port=5433",
        "host=one hostaddr=10.0.0.9",
        "hostaddr=10.0.0.9",
        "host=127.0.0.1,/run",
    ],
)
def test_nothing_to_resolve(connect, dsn):
    """Addresses, sockets, and names with an address are not resolved."""
    assert connect(dsn) == (parse_dsn(dsn), [])


@pytest.mark.parametrize(
    ("dsn", "hosts", "addresses", "ports"),
    [
        ("host=one", "one", "10.0.0.1", None),
        ("host=one port=5433", "one", "10.0.0.1", "5433"),
        ("host=two port=5433", "two,two", "10.0.0.2,::2", "5433,5433"),
        ("host=two,one port=1,2", "two,two,", f"10.0.0.2,::2,{NEXT.address}", "1,1,"),
        (
            "host=two,one port=1,2 load_balance_hosts=random",
            *("two,two,one", "10.0.0.2,::2,10.0.0.1", "1,1,2"),
        ),
        (
            "host=two,/run,one target_session_attrs=prefer-standby",
            *("two,two,/run,one", "10.0.0.2,::2,,10.0.0.1", None),
        ),
        ("postgresql://one:5433/x", "one", "10.0.0.1", "5433"),
    ],
)
def test_resolved(connect, dsn, hosts, addresses, ports):
    """Each address of a name becomes a host, with the name beside it."""
    given, _ = connect(dsn)
    assert (given["host"], given["hostaddr"]) == (hosts, addresses)
    assert given.get("port") == ports


def test_name_after_another_host(connect):
    """A name is not looked up before libpq has come to it; another host marks its place."""
    given, resolved = connect("host=/run,one port=5433")
    assert resolved == []
    assert given == {"host": "/run,", "hostaddr": f",{NEXT.address}", "port": "5433,"}


def test_names_from_the_environment(connect, monkeypatch):
    """A name in PGHOST is resolved as well, and PGPORT goes with it."""
    monkeypatch.setenv("PGHOST", "one")
    monkeypatch.setenv("PGPORT", "5433")
    given, resolved = connect("dbname=x")
    assert resolved == ["one"]
    assert given["hostaddr"] == "10.0.0.1"
    assert given["dbname"] == "x"


@pytest.mark.parametrize(
    "dsn",
    ["service=x host=one", "host=one,two port=1,2,3", "host=one hostaddr=1.1.1.1,"],
)
def test_left_to_libpq(connect, dsn):
    """Libpq reads the hosts itself with a service file, or if the lists differ."""
    given, resolved = connect(dsn)
    assert resolved == []
    assert given == parse_dsn(dsn)


def test_unknown_name_beside_another(connect):
    """A name without an address is left out if there is another host."""
    given, resolved = connect("host=nowhere,one")
    assert resolved == ["nowhere", "one"]
    assert (given["host"], given["hostaddr"]) == ("one", "10.0.0.1")


def test_unknown_name():
    """A name without an address raises libpq's error if it is the only host."""

    def resolve(name):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(psycopg2.OperationalError) as caught:
        GreenConnect(psycopg2._connect, resolve).connect("host=nowhere")
    assert str(caught.value) == (
        'could not translate host name "nowhere" to address: Name or service not known\n'
    )


@pytest.mark.parametrize(
    ("host", "address", "port", "expected"),
    [
        ("db", "", "", 'at "db", port 5432'),
        ("db", "10.0.0.1", "5433", 'at "db" (10.0.0.1), port 5433'),
        ("10.0.0.1", "10.0.0.1", 5433, 'at "10.0.0.1", port 5433'),
        ("", "10.0.0.1", "", 'at "10.0.0.1", port 5432'),
        ("/run", "", "", 'on socket "/run/.s.PGSQL.5432"'),
        ("@run", "", "5433", 'on socket "@run/.s.PGSQL.5433"'),
    ],
)
def test_error_prefix(host, address, port, expected):
    """Errors begin as libpq's do, with the name, its address and the port."""
    expected = f"connection to server {expected} failed: "
    assert error_prefix(host, address, port) == expected


@pytest.mark.parametrize(
    ("host", "where", "expected"),
    [
        (Host("one", "", ""), ("one", "10.0.0.1", 5432), True),
        (Host("one", "", "5433"), ("one", "10.0.0.1", 5432), False),
        (Host("one", "10.0.0.1", ""), ("one", "10.0.0.2", 5432), False),
        (Host("", "10.0.0.1", ""), ("10.0.0.1", "10.0.0.1", 5432), True),
        (Host("", "127.1", ""), ("127.1", "127.0.0.1", 5432), True),
        (Host("", "::1", ""), ("0::1", "0::1", 5432), True),
        (Host("", "", ""), ("/run/postgresql", "", 5432), True),
        (Host("", "", ""), ("localhost", "127.0.0.1", 5432), True),
        (Host("", "", ""), ("127.0.0.1", "127.0.0.1", 5432), False),
    ],
)
def test_where_libpq_is(host, where, expected):
    """A host is recognized by what libpq reports; an empty one is libpq's default."""
    assert host.is_at(*where) == expected
