"""One contract for every wait callback.

The suite is in contract/. For each backend it runs in a monkey-patched process, which
reports the result of each test as it finishes. Here each of them is a test.
"""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version

import pytest
from conftest import HBA, NO_RESOLVER, SKIPPED_CASES, TESTS, environment, make_role
from contract.run import BACKENDS, modules, name, reason_for_full_run
from contract.stream import VARIABLE

from psycogreen._check.postgres import postgres

CONTRACT = TESTS / "contract"
TIME_BOX = 120  # seconds for one test, in all its cases


def listed(path):
    """Return the names of a module's tests, and whether each is marked ``full``.

    Its source is read: to import it here, before a monkey patch, is wrong.
    """
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            marks = map(ast.unparse, node.decorator_list)
            yield node.name, "pytest.mark.full" in marks


def marks(backend, path, is_full):
    """Return the marks of a test under a backend."""
    if is_full:
        return [pytest.mark.full]
    if reason := reason_for_full_run(backend, path):
        return [pytest.mark.full(reason=reason)]
    return []


CASES = [
    pytest.param(
        backend,
        f"{path.name}::{test}",
        id=f"{backend}-{name(path)}-{test[5:]}",
        marks=marks(backend, path, is_full),
    )
    for backend in BACKENDS
    for path in modules(backend)
    for test, is_full in listed(path)
]


def is_able(backend):
    """Return whether the hub supports a second native thread, and a fork."""
    release = tuple(map(int, version("eventlet").split(".")[:2]))
    return backend != "eventlet-asyncio" or release >= (0, 41)


class Suite:
    """Tests of the contract that run in a process of their own, under one backend."""

    def __init__(self, process, stream, output):
        """Read from *stream* what *process* tells; *output* is what it prints."""
        self._process = process
        self._stream = stream
        self._output = output
        self._left = Counter()
        self._finished = defaultdict(list)
        self._ended = False
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        with self._stream:
            for line in self._stream:
                with self._more:
                    self._take(json.loads(line))
                    self._more.notify_all()
        with self._more:
            self._ended = True
            self._more.notify_all()

    def _take(self, message):
        """Take in a message: the cases there are, or what became of one."""
        if not self._left:
            self._left.update(name.partition("[")[0] for name in message)
        else:
            name, outcome, text = message
            test = name.partition("[")[0]
            self._left[test] -= 1
            self._finished[test].append((name, outcome, text))

    def wait(self, test):
        """Wait for a test's end; return what became of each of its cases.

        The process is aborted if it takes too long: it then tells where it is.
        """
        with self._more:
            if not self._more.wait_for(lambda: self._is_over(test), TIME_BOX):
                self._process.send_signal(signal.SIGABRT)
                self._more.wait_for(lambda: self._ended)
            assert test in self._left, self._read_output()
            assert self._left[test] == 0, self._read_output()
            return self._finished[test]

    def _is_over(self, test):
        return self._ended or (self._left and not self._left[test])

    def _read_output(self):
        self._process.wait()
        self._output.seek(0)
        return self._output.read()

    def stop(self):
        """End the process, whatever it still does."""
        self._process.kill()
        self._process.wait()
        self._reader.join()


@contextmanager
def run(backend: str, tests: list[str]) -> Iterator[Suite]:
    """Run tests of the contract with a server of their own."""
    command = [sys.executable, "-P", "-W", "error", "-X", "faulthandler"]
    arguments = [
        CONTRACT / "run.py",
        backend,
        "--full",  # which tests run was decided when they were collected here
        *(f"{CONTRACT}/{each}" for each in tests),
    ]
    receiving, sending = os.pipe()
    with (
        postgres(hba=HBA, settings={"wal_level": "logical"}) as server,
        tempfile.TemporaryFile("w+") as output,
    ):
        make_role(server)
        process = subprocess.Popen(
            [*command, *arguments],
            env={
                **os.environ,
                **environment(server),
                "PSYCOGREEN_TEST_BACKEND": backend,
                VARIABLE: str(sending),
                NO_RESOLVER: "",
            },
            pass_fds=[sending],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        os.close(sending)
        suite = Suite(process, open(receiving), output)  # noqa: SIM115
        try:
            yield suite
        finally:
            suite.stop()


@pytest.fixture(scope="module")
def suite(request):
    """Return the tests that this run has of a backend, in a process of their own.

    It ends when another backend's are asked for.
    """
    running = {}
    wanted = defaultdict(list)
    for item in request.session.items:
        if item.module is request.module:
            wanted[item.callspec.params["backend"]].append(item.callspec.params["test"])
    with ExitStack() as stack:

        def suite(backend):
            if backend not in running:
                stack.close()
                running.clear()
                tests = wanted[backend]
                running[backend] = stack.enter_context(run(backend, tests))
            return running[backend]

        yield suite


@pytest.mark.parametrize(("backend", "test"), CASES)
def test_contract(suite, backend, test, record_property):
    """The contract test passes in a process that the backend has monkey-patched."""
    if not is_able(backend):
        pytest.skip("eventlet's asyncio hub before 0.41 supports no thread and no fork")
    cases = suite(backend).wait(test)
    failed = [f"{name}\n{text}" for name, outcome, text in cases if outcome == "failed"]
    skipped = {
        name: text.removeprefix("Skipped: ")
        for name, outcome, text in cases
        if outcome == "skipped"
    }
    if failed:
        pytest.fail("\n\n".join(failed), pytrace=False)
    if len(skipped) == len(cases):
        pytest.skip(next(iter(skipped.values())))
    if skipped:
        record_property(SKIPPED_CASES, skipped)
