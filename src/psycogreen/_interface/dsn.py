"""Connection strings as people give them, and as they may be shown."""

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
    """Return *dsn* in libpq's words; SQLAlchemy's URLs name the driver as well.

    Raise `ValueError` if it is none, with a message that shows no password.
    """
    dsn = re.sub(r"^(postgres(ql)?)\+\w+://", r"\1://", dsn)
    try:
        parameters = parse_dsn(dsn)
    except psycopg2.ProgrammingError as ex:
        reason = _hint(dsn) or str(ex).replace("invalid dsn: ", "").strip()
        # libpq cites what it stumbled over: that may be a piece of a password.
        if "password" in dsn or "@" in dsn:
            reason = re.sub(r'"[^"]*"', '"..."', reason, flags=re.DOTALL)
        msg = f"invalid connection string: {reason}"
        raise ValueError(msg) from None
    # Where a password breaks off too early its rest is taken for something else.
    if any("@" in parameters.get(name, "")[1:] for name in ("host", "dbname")):
        msg = (
            "invalid connection string: write the characters @ and / of a password "
            "in a URL as %40 and %2F"
        )
        raise ValueError(msg)
    return dsn


def _hint(dsn: str) -> str | None:
    """Return what to write instead of *dsn*, if that is a usual mistake."""
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
