"""Connection strings: made valid for libpq, and shown without passwords."""

from __future__ import annotations

import re

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn

_SECRETS = (
    "password",
    "sslpassword",
    "oauth_client_secret",
    "scram_client_key",
    "scram_server_key",
)


def for_libpq(dsn: str) -> str:
    """Return *dsn* for libpq: without the driver that SQLAlchemy's URLs name.

    Raise `ValueError` if it is not a connection string; the message shows no password.
    """
    dsn = re.sub(r"^(postgres(ql)?)\+\w+://", r"\1://", dsn)
    try:
        parameters = parse_dsn(dsn)
    except psycopg2.ProgrammingError as ex:
        reason = _hint(dsn) or str(ex).replace("invalid dsn: ", "").strip()
        # libpq's message quotes the invalid part, which may be part of a password.
        if "password" in dsn or "@" in dsn:
            reason = re.sub(r'"[^"]*"', '"..."', reason, flags=re.DOTALL)
        msg = f"invalid connection string: {reason}"
        raise ValueError(msg) from None
    # An unquoted @ or / in a URL ends a password too early; the rest becomes the host.
    if "://" in dsn and any(
        "@" in parameters.get(name, "")[1:] for name in ("host", "dbname")
    ):
        msg = (
            "invalid connection string: write the characters @ and / of a password "
            "in a URL as %40 and %2F"
        )
        raise ValueError(msg)
    return dsn


def _hint(dsn: str) -> str | None:
    """Return what to write instead of *dsn* if that is a common mistake."""
    if re.fullmatch(r"[\w-]+", dsn):
        return f"for the database of that name write dbname={dsn}"
    if scheme := re.match(r"(?!postgres)(\w+)(\+\w+)?://", dsn):
        return f"{scheme[1]}:// is another database's, write postgresql://"
    return None


def shown(dsn: str) -> str:
    """Return *dsn*, which must be valid, without its passwords."""
    parameters = parse_dsn(dsn)
    for secret in _SECRETS:
        parameters.pop(secret, None)
    return str(make_dsn(**parameters))
