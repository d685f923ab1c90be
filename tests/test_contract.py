"""One contract, kept by every wait callback."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import pytest
from conftest import HBA, TESTS, environment, make_role
from contract.run import BACKENDS

from psycogreen._check.postgres import postgres

AT_ONCE = 4


def run(backend):
    """Run the contract suite in a process of its own, with a server of its own."""
    with postgres(hba=HBA) as server:
        make_role(server)
        return subprocess.run(
            [
                sys.executable,
                "-P",
                "-W",
                "error",
                TESTS / "contract" / "run.py",
                backend,
            ],
            env={
                **os.environ,
                **environment(server),
                "PSYCOGREEN_TEST_BACKEND": backend,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )


def is_able(backend):
    """Return whether the hub by itself bears a second native thread, and a fork."""
    release = tuple(map(int, version("eventlet").split(".")[:2]))
    return backend != "eventlet-asyncio" or release >= (0, 41)


@pytest.fixture(scope="module")
def results(request):
    """What comes of the suite under each callback that is asked for.

    Several run at once: what takes them long is waiting.
    """
    items = [item for item in request.session.items if item.module is request.module]
    wanted = filter(is_able, [item.callspec.params["backend"] for item in items])
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {backend: pool.submit(run, backend) for backend in wanted}


@pytest.mark.parametrize("backend", BACKENDS)
def test_contract(backend, results):
    """The contract suite passes, in a process that is monkey-patched."""
    if not is_able(backend):
        pytest.skip("eventlet's asyncio hub before 0.41 bears no thread and no fork")
    result = results[backend].result()
    print(result.stdout)
    assert result.returncode == 0
