"""The classic example under eventlet: queries and downloads overlap."""

from overlap import assert_overlap


def test_overlap(python, examples):
    """The example's queries and downloads overlap under eventlet."""
    assert_overlap(python(examples / "eventlet_example.py"))
