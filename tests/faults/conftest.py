"""Fixtures of the fault suite."""

from collections.abc import Iterator

import pytest
from faults.lab import Lab, open_lab


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab for all faults."""
    with open_lab(tmp_path_factory.mktemp("tls")) as lab:
        yield lab
