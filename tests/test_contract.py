"""One contract, kept by every wait callback."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import HBA, TESTS, environment, make_role
from contract.run import BACKENDS

from psycogreen._postgres import postgres

AT_ONCE = 3


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


@pytest.fixture(scope="module")
def results(request):
    """What comes of the suite under each callback that is asked for.

    Some run at once: what takes them long is waiting.
    """
    wanted = [
        item.callspec.params["backend"]
        for item in request.session.items
        if item.module is request.module
    ]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {backend: pool.submit(run, backend) for backend in wanted}


@pytest.mark.parametrize("backend", BACKENDS)
def test_contract(backend, results):
    """The contract suite passes, in a process that is monkey-patched."""
    result = results[backend].result()
    print(result.stdout)
    assert result.returncode == 0
