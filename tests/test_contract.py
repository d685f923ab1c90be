"""One contract, kept by every wait callback."""

import pytest
from conftest import TESTS
from contract.run import BACKENDS


@pytest.mark.parametrize("backend", BACKENDS)
def test_contract(backend, python):
    """The contract suite passes, in a process that is monkey-patched."""
    print(
        python(
            TESTS / "contract" / "run.py",
            backend,
            timeout=300,
            PSYCOGREEN_TEST_BACKEND=backend,
        )
    )
