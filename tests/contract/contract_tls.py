"""TLS with names resolved by psycogreen: the certificate is held against the name."""

import psycopg2
import psycopg2.extensions
import pytest
import tls

import psycogreen
from psycogreen._check.postgres import postgres
from psycogreen._interface import connecting, readback


@pytest.fixture(scope="module")
def tls_server():
    """A server that can be given certificates."""
    with postgres() as server:
        if not tls.has_tls(server):
            pytest.skip(tls.SKIPPED)
        yield server


@pytest.fixture
def options(tls_server):
    """The parameters to connect by name, without a trusted root."""
    return {
        "host": "localhost",
        "port": tls_server.port,
        "user": "postgres",
        "dbname": "postgres",
        "sslmode": "verify-full",
    }


def test_verify_full(green, tls_server, options, tmp_path):
    """A certificate for the name is accepted, although libpq gets an address."""
    root = tls.serve_tls(tls_server, "localhost", tmp_path)
    with green.ticking(1):
        conn = psycopg2.connect(**options, sslrootcert=root)
        conn.cursor().execute("select pg_sleep(0.1)")
    assert conn.info.ssl_in_use
    assert readback.is_noted(conn)
    conn.close()


def test_certificate_of_another_name(green, tls_server, options, tmp_path):
    """A certificate for another name is refused, as in libpq."""
    root = tls.serve_tls(tls_server, "db.example", tmp_path)
    errors = []
    for green_mode in True, False:
        if not green_mode:
            psycogreen.unpatch_psycopg()
        with pytest.raises(psycopg2.OperationalError) as caught:
            psycopg2.connect(**options, sslrootcert=root)
        errors.append(str(caught.value).splitlines()[-1])
    assert 'for "db.example"' in errors[0]
    assert 'does not match host name "localhost"' in errors[0]
    assert errors[0] == errors[1]


def test_name_of_the_certificate(green, tls_server, options, tmp_path, monkeypatch):
    """A certificate's name is accepted with any address that it resolves to."""
    root = tls.serve_tls(tls_server, "db.example", tmp_path)
    monkeypatch.setattr(connecting.installed(), "resolve", lambda host: ["127.0.0.1"])
    options["host"] = "db.example"
    psycopg2.connect(**options, sslrootcert=root).close()


def test_unknown_root(green, tls_server, options, tmp_path):
    """A certificate of an authority that is not trusted is refused."""
    tls.serve_tls(tls_server, "localhost", tmp_path)
    other = tmp_path / "other.crt"
    tls.trustme.CA().cert_pem.write_to_path(str(other))
    with pytest.raises(psycopg2.OperationalError, match="certificate verify failed"):
        psycopg2.connect(**options, sslrootcert=other)
