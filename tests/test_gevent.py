"""The classic example under gevent: queries and downloads overlap."""

from overlap import assert_overlap


def test_overlap(python, examples):
    """The example's queries and downloads overlap under gevent."""
    assert_overlap(python(examples / "gevent_example.py"))
