"""Connecting: its deadline, its hosts, their names."""

import contextlib
import gc
import os
import socket
import time
import traceback
import weakref
from collections import deque
from types import SimpleNamespace

import psycopg2
import psycopg2.extensions
import psycopg2.extras
import pytest
from hub_tools import await_
from psycopg2.extensions import libpq_version, parse_dsn

import psycogreen
from psycogreen._interface import connecting, hosts_file, lookups
from psycogreen._interface.hosts import NEXT
from psycogreen._wait import bell, native, offload
from psycogreen._wait.native import original


@contextlib.contextmanager
def silent_server():
    """A server whose system accepts connections, but which does not answer."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(100)
        yield sock.getsockname()[1]


@contextlib.contextmanager
def unreachable_server():
    """A port whose connection attempts are neither accepted nor refused.

    Its queue of connections is full, so the system drops further attempts.
    """
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket())
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(sock.getsockname())
        yield sock.getsockname()[1]


@contextlib.contextmanager
def closed_port():
    """A port where connections are refused."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@pytest.fixture
def port(dsn):
    """The port of the server that answers."""
    return int(parse_dsn(dsn)["port"])


@pytest.fixture
def user():
    """The parameters to log in, without the hosts."""
    return {"user": "postgres", "dbname": "postgres"}


def libpq_error(**options):
    """Return libpq's own error, when psycopg2 blocks."""
    with psycogreen.blocking(), pytest.raises(psycopg2.OperationalError) as caught:
        psycopg2.connect(**options)
    return str(caught.value)


@pytest.mark.parametrize("server", [silent_server, unreachable_server])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1"])
def test_connect_timeout(green, user, server, host):
    """A host that does not answer times out with libpq's error; the loop goes on."""
    with server() as port:
        options = {"host": host, "port": port, "connect_timeout": 1, **user}
        expected = libpq_error(**options)
        begin = time.monotonic()
        with green.ticking(), pytest.raises(psycopg2.OperationalError) as caught:
            psycopg2.connect(**options)
        assert 0.9 < time.monotonic() - begin < 60
    assert "timeout expired" in expected
    assert str(caught.value) == expected
    assert type(caught.value).__module__ != "builtins"


def test_connect_timeout_from_the_environment(green, user, monkeypatch):
    """PGCONNECT_TIMEOUT counts as the keyword does."""
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "1")
    with (
        silent_server() as port,
        pytest.raises(psycopg2.OperationalError, match="timeout expired"),
    ):
        psycopg2.connect(host="127.0.0.1", port=port, **user)


@pytest.mark.parametrize("seconds", [0, -1, None])
def test_no_connect_timeout(green, user, seconds):
    """With connect_timeout zero, negative or unset, the wait has no limit."""
    options = {} if seconds is None else {"connect_timeout": seconds}
    with silent_server() as port, pytest.raises(green.Timeout), green.Timeout(1.5):
        psycopg2.connect(host="127.0.0.1", port=port, **user, **options)


@pytest.mark.parametrize("value", ["abc", "1.5", "99999999999", "2x", ""])
def test_invalid_connect_timeout(green, user, port, value):
    """A connect_timeout that is not a whole number raises libpq's error."""
    options = {"host": "127.0.0.1", "port": port, "connect_timeout": value, **user}
    expected = libpq_error(**options)
    with pytest.raises(psycopg2.OperationalError) as caught:
        psycopg2.connect(**options)
    assert str(caught.value) in expected
    assert f'invalid integer value "{value}"' in str(caught.value)


def test_connect_timeout_with_spaces(green, user, port):
    """White space around the number of connect_timeout is allowed, as in libpq."""
    psycopg2.connect(
        host="127.0.0.1", port=port, connect_timeout=" +5 ", **user
    ).close()


@pytest.mark.parametrize("server", [silent_server, unreachable_server])
def test_second_host(green, user, port, server):
    """If the first host does not answer in time, the second one is tried."""
    with server() as silent:
        with green.ticking():
            conn = psycopg2.connect(
                host="localhost,localhost",
                port=f"{silent},{port}",
                connect_timeout=1,
                **user,
            )
        assert conn.info.port == port
        conn.close()


def test_refused_then_silent_then_good(green, user, port):
    """A host that answers is found after hosts that refuse or do not answer."""
    with closed_port() as refused, silent_server() as silent:
        conn = psycopg2.connect(
            host="127.0.0.1,127.0.0.1,127.0.0.1",
            port=f"{refused},{silent},{port}",
            connect_timeout=1,
            **user,
        )
        assert conn.info.port == port
        conn.close()


def test_error_of_each_host(green, user):
    """If no host answers, the error has a line for each host."""
    with (
        closed_port() as refused,
        silent_server() as silent,
        closed_port() as last,
        pytest.raises(psycopg2.OperationalError) as caught,
    ):
        psycopg2.connect(
            host="localhost,no-such-host.invalid,127.0.0.1,127.0.0.1",
            port=f"{refused},1,{silent},{last}",
            connect_timeout=1,
            **user,
        )
    error = str(caught.value)
    assert type(caught.value) is psycopg2.OperationalError
    assert 'could not translate host name "no-such-host.invalid" to address: ' in error
    assert f'"127.0.0.1", port {silent} failed: timeout expired' in error
    assert (
        f'"localhost" (127.0.0.1), port {refused} failed: Connection refused' in error
    )
    assert f'"127.0.0.1", port {last} failed: Connection refused' in error


def test_hosts_that_fail_at_once(green, user, port):
    """The error names hosts that libpq gives up before its first wait."""
    with silent_server() as silent, pytest.raises(psycopg2.OperationalError) as caught:
        psycopg2.connect(
            host="/no/such/folder,127.0.0.1",
            port=silent,
            connect_timeout=1,
            **user,
        )
    assert "/no/such/folder/.s.PGSQL" in str(caught.value)
    assert "timeout expired" in str(caught.value)


def test_error_of_each_host_without_resolving(green, user):
    """If libpq resolves the names, its error names each address once."""
    psycogreen.unpatch_psycopg()
    psycogreen.patch_psycopg(resolve_hosts=False)
    with (
        closed_port() as first,
        closed_port() as second,
        pytest.raises(psycopg2.OperationalError) as caught,
    ):
        psycopg2.connect(host="localhost,127.0.0.1", port=f"{first},{second}", **user)
    error = str(caught.value)
    assert error.count("Connection refused") == error.count(" failed: ")
    assert "failed immediately" not in error


def test_read_write_host(green, user, port):
    """Libpq applies target_session_attrs, also after a host has timed out."""
    read_only = psycopg2.connect(host="127.0.0.1", port=port, **user)
    name = f"standby_{green.name}"
    cursor = read_only.cursor()
    cursor.execute(f"drop role if exists {name}")
    cursor.execute(f"create role {name} login superuser")
    cursor.execute(f"alter role {name} set default_transaction_read_only = on")
    read_only.commit()
    read_only.close()
    options = {"dbname": "postgres", "user": name, "connect_timeout": 1}
    with silent_server() as silent:
        hosts = {"host": "127.0.0.1,localhost", "port": f"{silent},{port}"}
        psycopg2.connect(**hosts, target_session_attrs="read-only", **options).close()
        with pytest.raises(psycopg2.OperationalError) as caught:
            psycopg2.connect(**hosts, target_session_attrs="read-write", **options)
    assert "timeout expired" in str(caught.value)
    assert "session is read-only" in str(caught.value)


def test_prefer_standby(green, user, port):
    """With prefer-standby, a primary is used if no standby answers."""
    with silent_server() as silent:
        conn = psycopg2.connect(
            host="127.0.0.1,127.0.0.1",
            port=f"{port},{silent}",
            target_session_attrs="prefer-standby",
            connect_timeout=1,
            **user,
        )
        assert conn.info.port == port
        conn.close()


def test_wrong_password_is_final(green, port):
    """After a wrong password no other host is tried, as in libpq."""
    with closed_port() as refused, pytest.raises(psycopg2.OperationalError) as caught:
        psycopg2.connect(
            host="127.0.0.1,localhost",
            port=f"{port},{refused}",
            dbname="postgres",
            user="with_password",
            password="wrong",
        )
    assert str(caught.value).startswith(
        f'connection to server at "127.0.0.1", port {port} failed: FATAL:  password'
    )
    assert "refused" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "/no/such/folder"])
def test_errors_name_the_host(green, user, host):
    """An error names the host, as libpq's own error does."""
    with closed_port() as port:
        options = {"host": host, "port": port, **user}
        expected = libpq_error(**options)
        with pytest.raises(psycopg2.OperationalError) as caught:
            psycopg2.connect(**options)
    # localhost may have another address that libpq tries as well.
    assert str(caught.value) == expected


def test_unknown_name(green, user):
    """A name that does not resolve raises libpq's error."""
    options = {"host": "no-such-host.invalid", **user}
    expected = libpq_error(**options)
    with pytest.raises(psycopg2.OperationalError) as caught:
        psycopg2.connect(**options)
    assert str(caught.value).split(":")[0] == expected.split(":")[0]
    assert str(caught.value).startswith(
        'could not translate host name "no-such-host.invalid" to address: '
    )


def test_impossible_name(green, user):
    """A name that cannot be encoded for a resolver raises psycopg2's error too."""
    with pytest.raises(
        psycopg2.OperationalError, match="could not translate host name"
    ):
        psycopg2.connect(host="a" * 300, **user)


@pytest.fixture
def slow_resolver(green, monkeypatch):
    """A slow resolver, which blocks in a native thread."""
    import _socket

    asked = []
    native_sleep = time_sleep()
    original = _socket.getaddrinfo

    def getaddrinfo(host, *arguments, **keywords):
        asked.append(host)
        native_sleep(1)
        return original("127.0.0.1", *arguments, **keywords)

    monkeypatch.setattr(_socket, "getaddrinfo", getaddrinfo)
    if green.name == "gevent":
        from gevent import get_hub

        monkeypatch.setattr("gevent.resolver.thread._socket", _socket, raising=False)
        resolver = get_hub().resolver

        def getaddrinfo_in_pool(*arguments, **keywords):
            return resolver.pool.apply(getaddrinfo, arguments, keywords)

        monkeypatch.setattr(
            type(resolver), "getaddrinfo", staticmethod(getaddrinfo_in_pool)
        )
    return asked


def time_sleep():
    """Return the native sleep, which blocks its thread."""
    from psycogreen._wait.native import original

    return original("time", "sleep")


def test_resolving_does_not_stall(green, user, port, slow_resolver):
    """The loop goes on while a name is resolved."""
    with green.ticking() as ticker:
        conn = psycopg2.connect(host="db.example", port=port, **user)
    assert slow_resolver == ["db.example"]
    assert ticker.longest_stall < 0.9
    assert conn.info.host == "db.example"
    conn.close()


def test_name_from_the_environment(green, user, port, slow_resolver, monkeypatch):
    """A name from PGHOST is resolved off the loop."""
    monkeypatch.setenv("PGHOST", "db.example")
    monkeypatch.setenv("PGPORT", str(port))
    conn = psycopg2.connect(**user)
    assert slow_resolver == ["db.example"]
    assert conn.info.host == "db.example"
    conn.close()


@pytest.mark.parametrize(
    "hosts",
    [
        {"host": "127.0.0.1"},
        {"hostaddr": "127.0.0.1"},
        {"host": "db.example", "hostaddr": "127.0.0.1"},
        {"host": None},
    ],
    ids=["numeric", "hostaddr", "both", "unix"],
)
def test_nothing_to_resolve(green, user, port, slow_resolver, hosts):
    """Addresses and unix sockets are not resolved."""
    if hosts.get("host", "") is None:
        hosts = {"host": parse_dsn(os.environ["PSYCOGREEN_TEST_UNIX_DSN"])["host"]}
    conn = psycopg2.connect(port=port, **hosts, **user)
    assert slow_resolver == []
    given = {
        key: value for key, value in conn.info.dsn_parameters.items() if key in hosts
    }
    assert given == hosts
    conn.close()


def test_every_address_is_tried(green, user, port, monkeypatch):
    """If the first address of a name refuses, the next one is tried."""
    hook = connecting.installed()
    monkeypatch.setattr(hook, "resolve", lambda host: ["127.0.0.2", "::1", "127.0.0.1"])
    conn = psycopg2.connect(host="db.example", port=port, **user)
    assert conn.info.host == "db.example"
    conn.close()


def test_second_address_after_a_silent_one(green, user, port, monkeypatch):
    """If the first address of a name does not answer in time, the next one is tried."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.2", port))
        sock.listen(10)
        hook = connecting.installed()
        monkeypatch.setattr(hook, "resolve", lambda host: ["127.0.0.2", "127.0.0.1"])
        with green.ticking():
            conn = psycopg2.connect(
                host="db.example", port=port, connect_timeout=1, **user
            )
        conn.close()


@pytest.mark.parametrize("scope", ["", "%1"])
def test_scope_of_an_address(green, scope, monkeypatch):
    """A link-local address keeps its network interface."""

    def getaddrinfo(host, port, family, kind):
        assert host == "db.example"
        return [
            (socket.AF_INET6, kind, 6, "", ("fe80::1", 0, 0, int(scope[1:] or 0))),
            (socket.AF_INET, kind, 6, "", ("127.0.0.1", 0)),
        ]

    monkeypatch.setattr("_socket.getaddrinfo", getaddrinfo)
    found = lookups.look_up_in_place("db.example")
    assert found == [f"fe80::1{scope}", "127.0.0.1"]


def test_errors_of_all_addresses(green, user, monkeypatch):
    """An error names host and address, for the second address as for the first."""
    monkeypatch.setattr(
        connecting.installed(), "resolve", lambda host: ["127.0.0.2", "127.0.0.3"]
    )
    with closed_port() as port, pytest.raises(psycopg2.OperationalError) as caught:
        psycopg2.connect(host="db.example,127.0.0.3", port=port, **user)
    named = [line for line in str(caught.value).splitlines() if " failed: " in line]
    assert [line.partition(", port")[0] for line in named] == [
        'connection to server at "db.example" (127.0.0.2)',
        'connection to server at "db.example" (127.0.0.3)',
        'connection to server at "127.0.0.3"',
    ]


@contextlib.contextmanager
def starting_server():
    """A server that refuses a connection after a while, as one does that is starting."""
    fields = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0"
    answer = b"E" + (len(fields) + 4).to_bytes(4, "big") + fields

    def serve():
        with contextlib.suppress(OSError):
            while True:
                client, _ = sock.accept()
                with client:
                    client.recv(8192)
                    client.sendall(answer)

    sock = original("socket", "socket")()
    with sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(10)
        native.start_thread(serve)
        yield sock.getsockname()[1]
        sock.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def names(monkeypatch):
    """The names that are looked up; each has the address 127.0.0.1."""
    asked = []

    def resolve(host):
        asked.append(host)
        if host == "dead.example":
            raise OSError(1, "no such name")
        return ["127.0.0.1"]

    monkeypatch.setattr(connecting.installed(), "resolve", resolve)
    return asked


def test_name_that_is_not_needed(green, user, port, names):
    """A name after the host that answers is not looked up: its name server may be down."""
    psycopg2.connect(host="127.0.0.1,dead.example", port=port, **user).close()
    psycopg2.connect(host="db.example,dead.example", port=port, **user).close()
    assert names == ["db.example"]


@pytest.mark.parametrize("limit", [{}, {"connect_timeout": 5}])
@pytest.mark.parametrize("server", [closed_port, starting_server])
def test_name_after_a_host_that_fails(green, user, port, names, server, limit):
    """A name is looked up when the hosts before it have failed, at once or later."""
    with server() as failing:
        conn = psycopg2.connect(
            host="127.0.0.1,one.example,dead.example,two.example,three.example",
            port=f"{failing},{failing},{port},{port},{port}",
            sslmode="disable",
            **limit,
            **user,
        )
    assert names == ["one.example", "dead.example", "two.example"]
    assert conn.info.host == "two.example"
    assert conn.info.port == port
    hosts = "127.0.0.1,one.example,dead.example,two.example,three.example"
    assert conn.get_dsn_parameters()["host"] == hosts
    assert parse_dsn(conn.dsn)["host"] == hosts
    conn.cursor().execute("select 1")
    conn.close()


def test_name_after_a_silent_host(green, user, port, names):
    """A name is looked up when the time of the hosts before it is up."""
    with silent_server() as silent:
        conn = psycopg2.connect(
            host="127.0.0.1,dead.example,db.example",
            port=f"{silent},{port},{port}",
            connect_timeout=1,
            **user,
        )
    assert names == ["dead.example", "db.example"]
    assert conn.info.host == "db.example"
    conn.close()


@pytest.mark.parametrize("limit", [{}, {"connect_timeout": 5}])
@pytest.mark.parametrize("server", [closed_port, starting_server])
def test_errors_before_and_of_names(green, user, names, server, limit):
    """If all fail, the error is libpq's: of each host in turn, and of each name."""
    with server() as failing, pytest.raises(psycopg2.OperationalError) as caught:
        psycopg2.connect(
            host="127.0.0.1,dead.example,db.example",
            port=failing,
            sslmode="disable",
            **limit,
            **user,
        )
    lines = [line for line in str(caught.value).splitlines() if not line[0].isspace()]
    assert [line.partition(" failed: ")[0] for line in lines] == [
        f'connection to server at "127.0.0.1", port {failing}',
        'could not translate host name "dead.example" to address: no such name',
        f'connection to server at "db.example" (127.0.0.1), port {failing}',
    ]


def test_error_that_is_final(green, port, names):
    """After an error with which libpq tries no other host, no further name is looked up."""
    with pytest.raises(psycopg2.OperationalError) as caught:
        psycopg2.connect(
            host="127.0.0.1,db.example", port=port, user="nobody", dbname="postgres"
        )
    assert 'role "nobody" does not exist' in str(caught.value)
    assert NEXT.address not in str(caught.value)
    assert names == []


@pytest.mark.parametrize(
    "hosts",
    [
        {"host": "127.0.0.1,db.example", "port": "99999,{port}"},
        {"host": "a,db.example", "hostaddr": "bad,", "port": "{port}"},
        {"host": f"/{'x' * 200},db.example", "port": "{port}"},
    ],
)
def test_name_after_a_wrong_host(green, user, port, names, hosts):
    """A name is looked up after a host to which libpq cannot connect at all."""
    hosts = {word: value.format(port=port) for word, value in hosts.items()}
    psycopg2.connect(**hosts, **user).close()
    assert names == ["db.example"]


def test_each_name_has_its_time(green, user, port, monkeypatch):
    """The time of a host begins when its name is known: a lookup may take longer."""

    def resolve(host):
        green.sleep(1.5)
        return ["127.0.0.1"]

    monkeypatch.setattr(connecting.installed(), "resolve", resolve)
    with starting_server() as failing:
        psycopg2.connect(
            host="127.0.0.1,db.example",
            port=f"{failing},{port}",
            sslmode="disable",
            connect_timeout=1,
            **user,
        ).close()


def test_factory_of_something_else(green, port, names):
    """What a factory returns need not be a connection."""
    made = object()
    options = {"host": "db.example", "port": port}
    assert psycopg2.connect(connection_factory=lambda *_: made, **options) is made


def test_factory_that_tries_again(green, user, port, names):
    """A factory that uses its connection string again does so with all hosts."""
    given = []

    def factory(dsn, async_=0):
        given.append(dsn)
        with contextlib.suppress(psycopg2.OperationalError):
            psycopg2.extensions.connection(f"{dsn} connect_timeout=1 user=nobody")
        return psycopg2.extensions.connection(dsn)

    conn = psycopg2.connect(
        host="127.0.0.1,db.example", port=port, connection_factory=factory, **user
    )
    conn.close()
    assert len(given) == 1
    assert NEXT.address not in given[0]
    assert names == ["db.example"]


@pytest.mark.parametrize("limit", [{}, {"connect_timeout": 5}])
def test_traceback_of_a_later_error(green, user, names, limit):
    """The traceback of an error shows nothing of how the attempt went on."""
    with (
        starting_server() as failing,
        pytest.raises(psycopg2.OperationalError) as caught,
    ):
        psycopg2.connect(
            host="127.0.0.1,dead.example",
            port=failing,
            sslmode="disable",
            **limit,
            **user,
        )
    text = "".join(traceback.format_exception(caught.value))
    assert "no such name" in text
    assert NEXT.address not in text


def test_environment_that_is_not_utf8(green, user, port):
    """A value of another encoding in the environment is passed on after a silent host."""
    os.environb[b"PGAPPNAME"] = b"caf\xe9"
    try:
        with hosts_after_a_silent_one(port) as hosts:
            conn = psycopg2.connect(hosts, **user)
    finally:
        del os.environb[b"PGAPPNAME"]
    cursor = conn.cursor()
    cursor.execute("select current_setting('application_name')")
    assert cursor.fetchone()[0].startswith("caf")
    conn.close()


@pytest.mark.parametrize("failing", [closed_port, starting_server])
def test_failed_connection_is_freed(green, user, failing):
    """A connection that could not be opened is freed without the garbage collector."""
    made = []

    class Connection(psycopg2.extensions.connection):
        def __init__(self, *args):
            made.append(weakref.ref(self))
            super().__init__(*args)

    gc.disable()
    try:
        with failing() as port, pytest.raises(psycopg2.OperationalError) as caught:
            psycopg2.connect(
                host="127.0.0.1",
                port=port,
                sslmode="disable",
                connection_factory=Connection,
                **user,
            )
        del caught
        assert [reference() for reference in made] == [None]
    finally:
        gc.enable()


def test_failures_before_a_name_are_counted(green, user, names):
    """An attempt that ends when no name has an address counts as one wait."""
    before = psycogreen.status().waits
    with starting_server() as failing, pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(
            host="127.0.0.1,dead.example", port=failing, sslmode="disable", **user
        )
    await_(green, lambda: psycogreen.status().waits > before)
    assert psycogreen.status().waits == before + 1


def test_name_after_the_wrong_kind_of_server(green, user, port, names):
    """A name is looked up after a server that target_session_attrs does not accept."""
    with pytest.raises(psycopg2.OperationalError) as caught:
        psycopg2.connect(
            host="127.0.0.1,db.example",
            port=port,
            target_session_attrs="standby",
            **user,
        )
    assert str(caught.value).count("not in hot standby mode") == 2
    assert names == ["db.example"]


def test_interrupted_in_a_later_lookup(green, user, port, monkeypatch):
    """A Timeout while a later name is looked up ends the attempt."""

    def resolve(host):
        green.sleep(60)

    monkeypatch.setattr(connecting.installed(), "resolve", resolve)
    hosts = {"host": "127.0.0.1,db.example", "sslmode": "disable"}
    with starting_server() as failing, pytest.raises(green.Timeout), green.Timeout(0.5):
        psycopg2.connect(**hosts, port=f"{failing},{port}", **user)
    assert psycogreen.status().waiting == 0


@contextlib.contextmanager
def hosts_after_a_silent_one(port):
    """The hosts of a connection string of which the first one does not answer."""
    with silent_server() as silent:
        yield f"host=127.0.0.1,127.0.0.1 port={silent},{port} connect_timeout=1"


class AddsParameters(psycopg2.extensions.connection):
    """A class of connections that adds parameters, as one does for a short-lived token."""

    def __init__(self, dsn, *args):
        """Add them."""
        super().__init__(
            f"{dsn} user=postgres password=new application_name=added", *args
        )


@pytest.mark.parametrize("given", ["", " password=old"])
def test_class_that_adds_parameters(green, port, given):
    """What a class of connections adds counts for the next host, too."""
    with hosts_after_a_silent_one(port) as hosts:
        conn = psycopg2.connect(
            f"{hosts} user=nobody dbname=postgres{given}",
            connection_factory=AddsParameters,
        )
    assert conn.info.port == port
    assert conn.info.user == "postgres"
    assert conn.info.password == "new"
    assert conn.info.dsn_parameters["application_name"] == "added"
    conn.close()


def test_class_that_adds_a_limit(green, user):
    """A connect_timeout that a class of connections adds counts."""

    class Limited(psycopg2.extensions.connection):
        def __init__(self, dsn, *args):
            super().__init__(f"{dsn} connect_timeout=1", *args)

    with silent_server() as silent, green.Timeout(20):
        options = {"host": "127.0.0.1", "port": silent, "connection_factory": Limited}
        with pytest.raises(psycopg2.OperationalError, match="timeout expired"):
            psycopg2.connect(**options, **user)


def test_replication_after_a_silent_host(green, user, port):
    """A replication connection is one also if the first host does not answer."""
    with hosts_after_a_silent_one(port) as hosts:
        conn = psycopg2.connect(
            hosts,
            connection_factory=psycopg2.extras.LogicalReplicationConnection,
            **user,
        )
    assert parse_dsn(conn.dsn)["replication"] == "database"
    assert conn.info.dsn_parameters["replication"] == "database"
    conn.close()


def test_class_with_its_own_hosts(green, user, port):
    """A class of connections that connects somewhere else is left to do so."""

    class Elsewhere(psycopg2.extensions.connection):
        def __init__(self, dsn, *args):
            super().__init__(f"{hosts} user=postgres dbname=template1", *args)

    with hosts_after_a_silent_one(port) as hosts:
        conn = psycopg2.connect(
            host="localhost", port=port, connection_factory=Elsewhere, **user
        )
    assert (conn.info.port, conn.info.dbname) == (port, "template1")
    assert conn.dsn == f"{hosts} user=postgres dbname=template1"
    assert conn.get_dsn_parameters()["host"] == "127.0.0.1,127.0.0.1"
    conn.close()


def test_class_with_its_own_host_at_once(green, user, port):
    """The parameters shown are those of the host that such a class connects to."""

    class Elsewhere(psycopg2.extensions.connection):
        def __init__(self, dsn, *args):
            super().__init__(
                f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
            )

    conn = psycopg2.connect(
        host="localhost", port=1, connection_factory=Elsewhere, **user
    )
    assert conn.dsn == f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
    assert conn.get_dsn_parameters()["host"] == "127.0.0.1"
    assert conn.info.dsn_parameters["port"] == str(port)
    conn.close()


def test_factory_with_a_connection_of_its_own(green, user, port):
    """A connection that a factory opens first does not take the other's hosts."""

    def factory(dsn, async_=0):
        psycopg2.extensions.connection(
            f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
        ).close()
        return psycopg2.extensions.connection(dsn)

    with hosts_after_a_silent_one(port) as hosts:
        conn = psycopg2.connect(hosts, connection_factory=factory, **user)
    assert conn.info.port == port
    conn.close()


def test_connection_without_connect(green, port):
    """A connection that is made without psycopg2.connect() tries all hosts."""
    with hosts_after_a_silent_one(port) as hosts:
        conn = psycopg2.extensions.connection(f"{hosts} user=postgres dbname=postgres")
    assert conn.info.port == port
    conn.close()


def test_reads_back_after_a_silent_host(green, user, port):
    """The parameters name all hosts, also those that did not answer."""
    with hosts_after_a_silent_one(port) as hosts:
        conn = psycopg2.connect(hosts, **user)
    given = parse_dsn(hosts)
    for parameters in conn.get_dsn_parameters(), conn.info.dsn_parameters:
        assert {word: parameters[word] for word in given} == given
        assert "hostaddr" not in parameters
    conn.close()


def test_service_with_a_silent_host(green, user, port, tmp_path, monkeypatch):
    """The hosts of a service file are tried in turn."""
    with hosts_after_a_silent_one(port) as hosts:
        lines = "\n".join(hosts.split())
        (tmp_path / "services").write_text(f"[here]\n{lines}\n")
        monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
        with green.ticking():
            conn = psycopg2.connect(service="here", **user)
    assert conn.info.port == port
    assert conn.get_dsn_parameters()["host"] == "127.0.0.1,127.0.0.1"
    assert "host" not in parse_dsn(conn.dsn)
    conn.close()


@pytest.fixture
def silent_address(port):
    """A name that libpq itself finds at an address that does not answer."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.2", port))
        sock.listen(10)
        yield "127.2"


def test_further_address_without_resolving(
    green, user, port, silent_address, monkeypatch
):
    """If libpq has resolved a name, its other addresses are tried after a silent one."""
    psycogreen.unpatch_psycopg()
    psycogreen.patch_psycopg(resolve_hosts=False)
    look_up = original("_socket", "getaddrinfo")

    def getaddrinfo(host, *arguments):
        assert host == silent_address
        return [
            *look_up("127.0.0.2", *arguments),
            *look_up("127.0.0.1", *arguments),
        ]

    monkeypatch.setattr("_socket.getaddrinfo", getaddrinfo)
    conn = psycopg2.connect(host=silent_address, port=port, connect_timeout=1, **user)
    assert conn.info.host == silent_address
    assert conn.get_dsn_parameters()["host"] == silent_address
    assert "hostaddr" not in conn.get_dsn_parameters()
    conn.close()


def test_further_address_asynchronously(green, user, port, silent_address, addresses):
    """An asynchronous connection tries a name's other addresses after a silent one."""
    conn = psycopg2.connect(
        host="db.example", port=port, connect_timeout=1, async_=True, **user
    )
    with green.ticking():
        green.callback(conn)
    assert conn.get_dsn_parameters()["host"] == "db.example"
    conn.close()


@pytest.fixture
def addresses(monkeypatch):
    """Make every name resolve to these addresses, of which the second one answers."""
    found = ["127.0.0.2", "127.0.0.1"]
    monkeypatch.setattr(connecting.installed(), "resolve", lambda host: found)
    return found


GIVEN = [
    "host=db.example port={port} user=postgres dbname=postgres",
    "postgresql://postgres@db.example:{port}/postgres",
    "host=db.example,localhost port={port} user=postgres dbname=postgres",
    "host=db.example,localhost port={port},{port} user=postgres dbname=postgres",
]


@pytest.mark.parametrize("given", GIVEN)
def test_reads_back_what_it_gave(green, port, addresses, given):
    """A connection shows the connection string and parameters that it was given."""
    dsn = given.format(port=port)
    conn = psycopg2.connect(dsn)
    assert conn.dsn == dsn
    expected = parse_dsn(dsn)
    for parameters in conn.get_dsn_parameters(), conn.info.dsn_parameters:
        assert {word: parameters[word] for word in expected} == expected
        assert "hostaddr" not in parameters
    assert conn.info.port == port
    conn.close()
    assert conn.dsn == dsn


def test_reads_back_without_a_password(green, port):
    """A connection's connection string hides the password, as without psycogreen."""
    dsn = f"host=localhost port={port} user=with_password dbname=postgres"
    conn = psycopg2.connect(dsn, password="right")
    assert parse_dsn(conn.dsn) == {**parse_dsn(dsn), "password": "xxx"}
    assert "password" not in conn.get_dsn_parameters()
    conn.close()


def test_reads_back_a_name_from_the_environment(green, port, user, monkeypatch):
    """A host from the environment is among the parameters, not in the connection string."""
    monkeypatch.setenv("PGHOST", "localhost")
    monkeypatch.setenv("PGPORT", str(port))
    with psycogreen.blocking():
        blocking = psycopg2.connect(**user)
    conn = psycopg2.connect(**user)
    assert conn.get_dsn_parameters() == blocking.get_dsn_parameters()
    assert conn.info.dsn_parameters == blocking.info.dsn_parameters
    assert conn.dsn == blocking.dsn
    conn.close()
    blocking.close()


def test_reads_back_of_a_replication_connection(green, port, user):
    """The parameter that a replication connection adds stays in its connection string."""
    dsn = f"host=localhost port={port} user=postgres dbname=postgres"
    conn = psycopg2.connect(
        dsn, connection_factory=psycopg2.extras.LogicalReplicationConnection
    )
    assert parse_dsn(conn.dsn).pop("replication") == "database"
    assert {**parse_dsn(conn.dsn), **parse_dsn(dsn)} == parse_dsn(conn.dsn)
    assert "hostaddr" not in parse_dsn(conn.dsn)
    conn.close()


def test_unpatched_attributes(green, dsn):
    """unpatch_psycopg() puts psycopg2's own attributes back."""
    psycogreen.unpatch_psycopg()
    cls = psycopg2.extensions.connection
    originals = cls.dsn, cls.get_dsn_parameters
    psycogreen.patch_psycopg()
    assert cls.dsn is not originals[0]
    psycogreen.unpatch_psycopg()
    assert (cls.dsn, cls.get_dsn_parameters) == originals
    psycogreen.patch_psycopg()


@pytest.mark.parametrize("server", [silent_server, unreachable_server])
def test_factory_after_a_silent_host(green, user, port, server):
    """The connection factory is called once, also if a host times out."""
    seen = []

    class Connection(psycopg2.extensions.connection):
        def __init__(self, dsn, *args):
            seen.append(dsn)
            super().__init__(dsn, *args)
            seen.append(self.dsn)

    with server() as silent:
        dsn = (
            f"host=127.0.0.1,127.0.0.1 port={silent},{port} user=postgres"
            " dbname=postgres connect_timeout=1"
        )
        conn = psycopg2.connect(dsn, connection_factory=Connection)
    assert seen == [dsn, dsn]
    assert conn.dsn == dsn
    assert conn.info.port == port
    # The connection works: notices, queries, a large statement.
    cursor = conn.cursor()
    cursor.execute("do $$ begin raise notice 'here'; end $$")
    assert "here" in conn.notices[-1]
    cursor.execute("select length(%s)", ("x" * 5_000_000,))
    assert cursor.fetchone() == (5_000_000,)
    conn.close()


def test_factory_with_its_own_close(green, user):
    """A subclass whose close() fails before it is initialised does not mask the error."""

    class Connection(psycopg2.extensions.connection):
        def __init__(self, *args):
            super().__init__(*args)
            self.log = []

        def close(self):
            self.log.append("closed")
            super().close()

    with closed_port() as port, pytest.raises(psycopg2.OperationalError) as caught:
        psycopg2.connect(
            host="127.0.0.1", port=port, connection_factory=Connection, **user
        )
    assert "Connection refused" in str(caught.value)


def test_factory_with_its_own_equality(green, user, port):
    """A connection class need not be hashable or equal to itself."""

    class Connection(psycopg2.extensions.connection):
        __hash__ = None

        def __eq__(self, other):
            raise AssertionError

    conn = psycopg2.connect(
        host="localhost", port=port, connection_factory=Connection, **user
    )
    conn.cursor().execute("select pg_sleep(0.01)")
    assert conn.get_dsn_parameters()["host"] == "localhost"
    conn.close()


def test_error_of_a_factory(green, user, port):
    """An error that a connection factory raises itself is not changed."""
    error = psycopg2.OperationalError("no more of them", 42)

    def factory(dsn):
        psycopg2.extensions.connection(dsn).close()
        raise error

    with pytest.raises(psycopg2.OperationalError) as caught:
        psycopg2.connect(
            host="no-such-host.invalid,localhost",
            port=port,
            connection_factory=factory,
            **user,
        )
    assert caught.value is error
    assert error.args == ("no more of them", 42)


@pytest.mark.parametrize("answers", [True, False])
def test_random_host(green, user, port, answers):
    """With random host order, the error does not name a host that was not tried."""
    if libpq_version() < 160000:
        pytest.skip("libpq before 16 has no load_balance_hosts")
    other = port if answers else 1
    with closed_port() as refused:
        hosts = {
            "host": "127.0.0.1,127.0.0.1,127.0.0.1",
            "port": f"{refused},{refused},{other}",
            "load_balance_hosts": "random",
            **user,
        }
        for _ in range(10):
            if answers:
                psycopg2.connect(**hosts).close()
                continue
            with pytest.raises(psycopg2.OperationalError) as caught:
                psycopg2.connect(**hosts)
            assert "failed immediately" not in str(caught.value)
            assert str(caught.value).count("Connection refused") == 3
            assert str(caught.value).count(" failed: ") == 3


@pytest.fixture
def held_resolver(green, monkeypatch):
    """A resolver that answers when it is released, and records the names."""
    import _socket

    asked = []
    let_go = original("_thread", "allocate_lock")()
    let_go.acquire()
    getaddrinfo = _socket.getaddrinfo

    def held(host, *arguments):
        asked.append(host)
        with let_go:
            return getaddrinfo("127.0.0.1", *arguments)

    monkeypatch.setattr(_socket, "getaddrinfo", held)
    asked_for = SimpleNamespace(names=asked, let_go=let_go.release)
    yield asked_for
    if let_go.locked():
        let_go.release()


def test_one_lookup_for_many(green, user, port, held_resolver):
    """Greenlets that look up the same name at the same time share one lookup."""

    def connect():
        psycopg2.connect(host="db.example", port=port, **user).close()

    tasks = [green.spawn(connect) for _ in range(100)]
    green.sleep(0)
    while not held_resolver.names:
        green.sleep(0.01)
    green.kill(tasks.pop())
    held_resolver.let_go()
    for task in tasks:
        green.wait(task)
    # A greenlet that came late asks again: the first lookup was over.
    assert len(held_resolver.names) <= 2


def test_name_in_the_hosts_file(green, user, port, tmp_path, monkeypatch):
    """A name in the hosts file is looked up in place: no thread is woken for it."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 db.example\n")
    services = tmp_path / "nsswitch.conf"
    services.write_text("hosts: files dns\n")
    monkeypatch.setattr(hosts_file, "_HOSTS", str(hosts))
    monkeypatch.setattr(hosts_file, "_SERVICES", str(services))
    threads = []
    native_id = original("_thread", "get_ident")
    look_up = original("_socket", "getaddrinfo")

    def getaddrinfo(host, *arguments):
        threads.append(native_id())
        return look_up("127.0.0.1", *arguments)

    monkeypatch.setattr("_socket.getaddrinfo", getaddrinfo)
    psycopg2.connect(host="db.example", port=port, **user).close()
    assert threads == [native_id()]
    hosts.write_text("127.0.0.1 other.example\n")
    psycopg2.connect(host="db.example", port=port, **user).close()
    assert len(threads) == 2
    assert threads[1] != native_id()


def test_lookups_are_not_kept(green, user, port, held_resolver):
    """The next attempt to connect looks the name up again."""
    held_resolver.let_go()
    for _ in range(3):
        psycopg2.connect(host="db.example", port=port, **user).close()
    assert held_resolver.names == ["db.example"] * 3


def test_lookups_share_a_thread(green, monkeypatch):
    """Consecutive lookups use the same native thread."""
    threads = []

    def getaddrinfo(host, *arguments):
        threads.append(original("_thread", "get_ident")())
        raise OSError(1, "no such name")

    monkeypatch.setattr("_socket.getaddrinfo", getaddrinfo)
    for _ in range(5):
        with pytest.raises(psycopg2.OperationalError, match="no such name"):
            psycopg2.connect(host="db.example")
        while not offload._idle:  # it tells its end before it is free again
            green.sleep(0.001)
    assert len(threads) == 5
    assert len(set(threads)) == 1


def test_lookup_amid_a_lookup(green, user, port, monkeypatch):
    """A destructor that connects by a name while a lookup of it is prepared does not wait.

    The garbage collector may run it there. It would wait for a call that only its own
    greenlet can begin.
    """
    connected = []

    class Bell(bell.bell):
        def __enter__(self):
            if not connected:
                connected.append(False)
                connect()
                connected[0] = True
            return super().__enter__()

    def connect():
        psycopg2.connect(host="127.1", port=port, **user).close()

    monkeypatch.setattr(offload, "bell", Bell)
    with green.Timeout(10):
        connect()
    assert connected == [True]


def test_lookup_in_the_thread_of_a_lookup(green, user, port, monkeypatch):
    """A destructor that connects by a name in the thread that looks it up does not wait.

    It would wait for a call that ends only after it.
    """
    connected = []
    getaddrinfo = original("_socket", "getaddrinfo")

    def in_thread(host, *arguments):
        if not connected:
            connected.append(False)
            connect()
            connected[0] = True
        return getaddrinfo(host, *arguments)

    def connect():
        psycopg2.connect(host="127.1", port=port, **user).close()

    monkeypatch.setattr("_socket.getaddrinfo", in_thread)
    with green.Timeout(10):
        connect()
    assert connected == [True]


def test_no_thread_for_a_lookup(green, user, port, monkeypatch):
    """If the system allows no further thread, the name is looked up in place, as by libpq."""

    def start_thread(function):
        msg = "can't start new thread"
        raise RuntimeError(msg)

    monkeypatch.setattr(native, "start_thread", start_thread)
    monkeypatch.setattr(offload, "_idle", deque())
    with green.Timeout(10):
        psycopg2.connect(host="127.1", port=port, **user).close()


def test_bell_is_closed_natively(green, monkeypatch):
    """Gevent's own close() would leave the descriptor to the loop, at a high price."""
    closed = []
    monkeypatch.setattr(os, "close", closed.append)
    with bell.bell() as ends:
        pass
    assert not set(ends) & set(closed)


def test_limit_in_a_native_thread(green, user, port):
    """A connect_timeout beyond the limit of poll() works in a native thread."""
    ended = []

    def connect():
        try:
            conn = psycopg2.connect(
                host="127.0.0.1", port=port, connect_timeout=3_000_000, **user
            )
            conn.close()
        except BaseException as ex:
            ended.append(ex)
        else:
            ended.append(None)

    native.start_thread(connect)
    while not ended:
        green.sleep(0.01)
    assert ended == [None]


def test_name_with_pgpass(green, port, tmp_path, monkeypatch):
    """Libpq looks up the password in .pgpass by the name, not by the address."""
    passfile = tmp_path / "pgpass"
    passfile.write_text(f"localhost:{port}:*:with_password:right\n")
    passfile.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(passfile))
    psycopg2.connect(
        host="localhost", port=port, dbname="postgres", user="with_password"
    ).close()


def test_url_and_factories(green, port):
    """A URL, a connection factory and a cursor factory work as without psycogreen."""
    conn = psycopg2.connect(
        f"postgresql://postgres@localhost:{port}/postgres?application_name=x",
        connection_factory=psycopg2.extras.LoggingConnection,
        cursor_factory=psycopg2.extras.DictCursor,
    )
    assert isinstance(conn, psycopg2.extras.LoggingConnection)
    assert conn.cursor_factory is psycopg2.extras.DictCursor
    assert conn.info.dsn_parameters["application_name"] == "x"
    conn.close()


def test_asynchronous_connection_by_name(green, user, port, slow_resolver):
    """An asynchronous connection resolves its name off the loop."""
    with green.ticking():
        conn = psycopg2.connect(host="db.example", port=port, async_=True, **user)
    assert slow_resolver == ["db.example"]
    green.callback(conn)
    conn.close()


def test_without_resolving(green, user, port):
    """With resolve_hosts=False, libpq resolves the name."""
    psycogreen.unpatch_psycopg()
    psycogreen.patch_psycopg(resolve_hosts=False)
    assert not psycogreen.status().resolve_hosts
    conn = psycopg2.connect(host="localhost", port=port, **user)
    assert "hostaddr" not in conn.info.dsn_parameters
    conn.close()


def test_service(green, user, port, tmp_path, monkeypatch):
    """Libpq resolves a name from a service file."""
    (tmp_path / "services").write_text(
        f"[here]\nhost=localhost\nport={port}\nuser=postgres\ndbname=postgres\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    psycopg2.connect(service="here").close()


@pytest.mark.parametrize("dsn", ["nonsense", "host", "postgresql://[::1", "port=1,2,3"])
def test_wrong_connection_string(green, dsn):
    """A wrong connection string raises the error of psycopg2 or libpq."""
    with psycogreen.blocking(), pytest.raises(psycopg2.Error) as expected:
        psycopg2.connect(dsn)
    with pytest.raises(psycopg2.Error) as caught:
        psycopg2.connect(dsn)
    assert str(caught.value) == str(expected.value)
    assert type(caught.value) is type(expected.value)


def test_no_place_to_hook(green, dsn, monkeypatch):
    """A psycopg2 without _connect still connects, and status() shows that."""
    psycogreen.unpatch_psycopg()
    connect = psycopg2._connect
    monkeypatch.delattr(psycopg2, "_connect")
    psycogreen.patch_psycopg()
    assert not psycogreen.status().resolve_hosts
    with green.ticking(1):
        conn = connect(dsn)
        conn.cursor().execute("select pg_sleep(0.1)")
    conn.close()
    psycogreen.unpatch_psycopg()


def test_socket_of_the_same_number(green, user, port):
    """A socket that libpq opens after it has closed another may get the same number."""
    with green.Timeout(60):
        # There is no standby: the server is asked for again, on a new connection.
        conn = psycopg2.connect(
            host="127.0.0.1", port=port, target_session_attrs="prefer-standby", **user
        )
    query = conn.cursor()
    query.execute("select 42")
    assert query.fetchone() == (42,)
    conn.close()


def test_switched_to_while_connecting(green, user):
    """A greenlet that is switched to before its socket is connected waits on."""
    errors = []

    def connect(port):
        try:
            psycopg2.connect(host="127.0.0.1", port=port, **user)
        except psycopg2.OperationalError as ex:
            errors.append(ex)

    with unreachable_server() as port:
        task = green.spawn(connect, port)
        await_(green, lambda: psycogreen.status().waiting)
        switched = []
        for _ in range(3):
            green.call_in_hub(task.switch)
            green.call_in_hub(lambda: switched.append(True))
        while len(switched) < 3:
            green.sleep(0.001)
        assert psycogreen.status().waiting == 1
        green.kill(task)
    assert not errors


@pytest.mark.parametrize("host", ["localhost", "127.1"])
def test_first_connection_imports_nothing(green, script, port, host):
    """The first connection of a process stops the loop for no import, by name neither."""
    script(
        f"""
        def connect():
            psycopg2.connect(host="{host}", port={port}, user="postgres").close()

        green.wait(green.spawn(int))  # which makes the hub, as in any worker
        modules = set(sys.modules)
        green.wait(green.spawn(connect))
        assert set(sys.modules) == modules, set(sys.modules) - modules
        """
    )


def test_interrupted_while_connecting(green, user, connect):
    """A Timeout while connecting is raised unchanged, and leaves no open socket."""
    connect()  # makes the hub, and the epoll set
    before = set(os.listdir("/proc/self/fd"))
    with silent_server() as port:
        timeout = green.Timeout(0.2)
        with pytest.raises(green.Timeout) as caught, timeout:
            psycopg2.connect(host="127.0.0.1", port=port, **user)
        assert caught.value is timeout
    assert set(os.listdir("/proc/self/fd")) <= before


def test_one_wait_for_each_connection(green, user, port):
    """To connect counts as one wait, however often it waits for the socket."""
    green.sleep(0)  # in Python, queries are counted when all in a batch were woken
    before = psycogreen.status().waits
    # There is no standby: the server is asked twice.
    for target in "any", "prefer-standby":
        psycopg2.connect(
            host="127.0.0.1", port=port, target_session_attrs=target, **user
        ).close()
    assert psycogreen.status().waits == before + 2


def test_two_greenlets_while_it_connects(green, user):
    """A second greenlet that waits for the same attempt gets an error; the first waits."""
    with silent_server() as port:
        conn = psycopg2.connect(host="127.0.0.1", port=port, async_=True, **user)
        task = green.spawn(green.callback, conn)
        await_(green, lambda: psycogreen.status().waiting)
        for _ in range(2):
            with pytest.raises(psycopg2.ProgrammingError, match="another greenlet"):
                green.callback(conn)
        assert psycogreen.status().waiting == 1
        green.kill(task)
    conn.close()
