"""The verdict of a check for given figures."""

import dataclasses
import json

import pytest

import psycogreen
from psycogreen import _install
from psycogreen._check import checking, report
from psycogreen._check.measuring import Figures

STATUS = dataclasses.replace(
    psycogreen.status(),
    framework="gevent",
    callback="psycogreen.gevent.gevent_wait_callback",
    monkey_patched=True,
    resolve_hosts=True,
)

# Of 10 queries of 0.5 s.
GREEN = {
    "wall_time": 0.51,
    "longest_stall": 0.004,
    "connect_stall": 0.006,
    "resolved_by": "psycogreen",
    "connect_timeout_honoured": True,
}


@dataclasses.dataclass
class Loop:
    """Stands in for a framework's loop."""

    name: str = "gevent"
    modules: tuple[str, ...] = ("socket", "time")
    patch_call: str = "gevent.monkey.patch_all()"
    patched: tuple[str, ...] = ("socket", "time")
    here: bool = True

    def is_here(self):
        """Return whether it runs in this thread."""
        return self.here

    def is_patched(self, module):
        """Return whether that is monkey-patched."""
        return module in self.patched


@pytest.fixture
def check(monkeypatch):
    """Check with a status, a loop and figures that differ from a green process's."""

    def check(status=(), loop=None, **figures):
        changed = dataclasses.replace(STATUS, **dict(status))
        measured = Figures(**{**GREEN, **figures})
        monkeypatch.setattr(_install, "status", lambda: changed)
        monkeypatch.setattr(checking, "loop", lambda name: loop or Loop())
        monkeypatch.setattr(checking, "measure", lambda *arguments: measured)
        return psycogreen.check("host=h password=secret")

    return check


def causes(report):
    """Return the titles of the problems."""
    return [problem.partition(":")[0] for problem in report.problems]


def test_green(check):
    """The check of a green process has no findings."""
    found = check()
    assert found.cooperative
    assert (found.problems, found.remarks) == ((), ())
    lines = list(report.lines(found))
    assert lines[0] == "cooperative: 10 concurrent queries of 0.5 s took 0.51 s"
    assert "  longest stall    4 ms of the loop; 6 ms while connecting" in lines


@pytest.mark.parametrize(
    ("status", "loop", "figures", "cause"),
    [
        ({"callback": None}, None, {}, "wait callback missing"),
        ({}, Loop(patched=("socket",)), {}, "monkey patch missing"),
        ({}, Loop(here=False), {}, "blocking thread"),
        ({}, None, {"longest_stall": 0.5}, "wait callback blocks"),
        ({}, None, {"resolved_by": "libpq"}, "name resolution blocks"),
        ({}, None, {"resolved_by": "gevent"}, "name resolution blocks"),
    ],
)
def test_problem(check, status, loop, figures, cause):
    """A cause that stops the loop is a problem, and the verdict is BLOCKING."""
    found = check(status, loop, **figures)
    assert cause in causes(found)
    assert not found.cooperative
    assert next(report.lines(found)).startswith("BLOCKING")
    assert report.as_dict(found)["verdict"] == "BLOCKING"


def test_nothing_installed(check):
    """A process with neither callback nor monkey patch has both problems."""
    found = check({"framework": None, "callback": None, "monkey_patched": False})
    assert causes(found) == ["wait callback missing", "monkey patch missing"]
    assert found.wall_time is None


def test_missing_modules_are_named(check):
    """The problem names the modules that are not patched, and the call to patch them."""
    [problem] = check(loop=Loop(patched=())).problems
    assert "socket, time" in problem
    assert "gevent.monkey.patch_all()" in problem


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        ({}, "not in a service file"),
        ({"resolve_hosts": False}, "unset PSYCOGREEN_RESOLVE_HOSTS"),
        (
            {"resolve_hosts": False, "callback": "eventlet.support.psycopg2_patcher"},
            "call psycogreen.patch_psycopg(), which looks up host names off the loop",
        ),
    ],
)
def test_remedy_for_names(check, status, remedy):
    """The remedy for names that libpq resolves depends on the installed callback."""
    [problem] = check(status, resolved_by="libpq").problems
    assert remedy in problem


@pytest.mark.parametrize(
    ("figures", "remark"),
    [
        ({"connect_stall": 0.5}, "connecting blocks"),
        ({"connect_timeout_honoured": False}, "does not honour connect_timeout"),
    ],
)
def test_remark(check, figures, remark):
    """A finding that does not stop queries is a remark, and the verdict stays good."""
    found = check(**figures)
    assert found.cooperative
    assert any(remark in text for text in found.remarks)


@pytest.mark.parametrize("stall", [0.1, 0.25])
def test_short_stalls(check, stall):
    """A stall that is much shorter than a query is ignored."""
    assert check(longest_stall=stall, connect_stall=stall).cooperative


def test_report_is_json_without_passwords(check):
    """The report can be written as JSON, and holds no password."""
    found = report.as_dict(check())
    assert next(iter(found)) == "verdict"
    assert "secret" not in json.dumps(found)
