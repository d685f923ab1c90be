"""A check's report, for people and for programs."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from psycogreen._check.checking import CheckReport
from psycogreen._check.measuring import stands_still

_GREEN, _RED, _PLAIN = "\x1b[1;32m", "\x1b[1;31m", "\x1b[0m"


def as_dict(report: CheckReport) -> dict[str, Any]:
    """Return the report as a dictionary for JSON, the verdict first."""
    return {
        "verdict": _verdict(report),
        **asdict(report),
        "problems": report.problems,
        "remarks": report.remarks,
    }


def lines(report: CheckReport, *, colours: bool = False) -> Iterator[str]:
    """Return the report in lines of text; the first one has the verdict."""
    verdict = _verdict(report)
    if colours and "NO_COLOR" not in os.environ:
        verdict = f"{_GREEN if report.cooperative else _RED}{verdict}{_PLAIN}"
    yield f"{verdict}: {_in_short(report)}"
    for name, value in _rows(report):
        yield f"  {name:<16} {value}"
    for finding in report.findings:
        kind = "problem" if finding.blocks else "remark"
        yield from _item(kind, f"{finding.title}: {finding.cause}")
        yield from _item("remedy", finding.remedy)


def _verdict(report: CheckReport) -> str:
    return "cooperative" if report.cooperative else "BLOCKING"


def _in_short(report: CheckReport) -> str:
    """Return the reason for the verdict."""
    took = _took(report)
    if report.cooperative:
        return took or "a wait callback is installed; no query was tried"
    title = next(finding.title for finding in report.findings if finding.blocks)
    # Queries may overlap even if the loop was blocked: their time would look like a
    # contradiction.
    if took and stands_still(report.longest_stall or 0, report.seconds):
        return f"{title}, {took}"
    return title


def _took(report: CheckReport) -> str:
    if report.wall_time is None:
        return ""
    return (
        f"{report.queries} concurrent queries of {report.seconds:g} s took "
        f"{report.wall_time:.2f} s"
    )


def _rows(report: CheckReport) -> Iterator[tuple[str, str]]:
    status = report.status
    yield "worker", report.worker or "none: this process was checked, no server"
    yield "database", report.dsn or report.server or "not tried"
    yield "wait callback", status.callback or "none"
    yield "monkey patch", "in force" if status.monkey_patched else "none"
    if report.longest_stall is not None:
        yield "wall time", f"{report.wall_time:.2f} s"
        yield "longest stall", _stalls(report)
        yield "name resolution", _resolution(report.resolved_by)
        yield "connect_timeout", _honoured(report.connect_timeout_honoured)


def _stalls(report: CheckReport) -> str:
    querying, connecting = report.longest_stall or 0, report.connect_stall or 0
    return (
        f"{querying * 1000:.0f} ms of the loop; {connecting * 1000:.0f} ms while "
        "connecting"
    )


def _resolution(resolved_by: str | None) -> str:
    if resolved_by is None:
        return "nothing to resolve"
    return "off the loop" if resolved_by == "psycogreen" else "on the loop"


def _honoured(honoured: bool | None) -> str:
    if honoured is None:
        return "not tried"
    return "honoured" if honoured else "not honoured"


def _item(kind: str, sentence: str) -> list[str]:
    return textwrap.wrap(f"{kind}: {sentence}", width=79, subsequent_indent="  ")
