"""Assertions that jobs ran concurrently."""

import re


def assert_at_once(results, one_by_one):
    """Assert that requests took less than half of *one_by_one*.

    *one_by_one* is how many seconds they take one after the other. Concurrently they take
    a small part of that; the margin is for a busy machine.
    """
    assert max(result.end for result in results) < one_by_one / 2


def assert_overlap(output):
    """Assert of an example's *output* that its queries and downloads overlapped."""
    events = re.findall(r"(query|download) (\d) (start|end)", output)
    assert sorted(events) == sorted(
        (job, str(n), event)
        for job, times in (("query", 3), ("download", 2))
        for n in range(times)
        for event in ("start", "end")
    ), output
    # Both first jobs begin before either has ended. One after the other, the
    # first to begin would end before the other one's start.
    assert {job for job, _, event in events[:2]} == {"query", "download"}, output
    assert [event for _, _, event in events[:2]] == ["start", "start"], output
    # And the first download, 0.3 s long, outlasts the first query, 0.2 s long.
    order = [(job, n) for job, n, event in events if event == "end"]
    assert order.index(("query", "0")) < order.index(("download", "0")), output
    assert order.index(("download", "0")) < order.index(("query", "2")), output
