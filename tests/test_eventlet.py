"""The classic example under eventlet: queries and downloads overlap."""

from overlap import assert_overlap


def test_overlap(python, examples):
    """While one job waits for PostgreSQL, the other one goes on, and vice versa."""
    assert_overlap(python(examples / "eventlet_example.py"))
