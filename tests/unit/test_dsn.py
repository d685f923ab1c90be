"""Connection strings: made valid for libpq, and shown without passwords."""

import pytest
from psycopg2.extensions import parse_dsn

from psycogreen._interface.dsn import for_libpq, shown


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("", ""),
        ("dbname=x", "dbname=x"),
        ("postgresql://u:p@h/d", "postgresql://u:p@h/d"),
        ("postgresql+psycopg2://u:p@h/d", "postgresql://u:p@h/d"),
        ("postgres+asyncpg://h", "postgres://h"),
        ("dbname=a@b", "dbname=a@b"),
        ("host=@a,@b", "host=@a,@b"),
    ],
)
def test_for_libpq(dsn, expected):
    """for_libpq() removes the driver from SQLAlchemy's URLs, and changes nothing else."""
    assert for_libpq(dsn) == expected


@pytest.mark.parametrize(
    "dsn",
    [
        "host=x password=a secret",
        "host=x password='my secret",
        "postgres://a:secret%zz@b",
        "postgres://a:b@secret@c/d",
        "postgres://a:5432/secret@b/d",
    ],
)
def test_invalid_with_a_password(dsn):
    """The error for an invalid connection string repeats no part of a password."""
    with pytest.raises(ValueError, match=r"^invalid connection string: ") as caught:
        for_libpq(dsn)
    assert "secret" not in str(caught.value)


def test_invalid_without_a_password():
    """Without a password the error repeats libpq's words."""
    with pytest.raises(ValueError, match='invalid connection option "hots"'):
        for_libpq("hots=example")


@pytest.mark.parametrize("secret", ["password", "sslpassword"])
def test_shown(secret):
    """A connection string is shown without the passwords in it."""
    found = shown(f"host=h user=u {secret}='my secret'")
    assert parse_dsn(found) == {"host": "h", "user": "u"}


def test_shown_url():
    """A URL is shown in keywords, without its password."""
    found = parse_dsn(shown("postgresql://u:secret@h:5433/d"))
    assert found == {"host": "h", "port": "5433", "user": "u", "dbname": "d"}
