"""Fixtures of the fault suite."""

from collections.abc import Iterator

import pytest
import tls
from conftest import HBA, make_role
from faults.lab import Lab

from psycogreen._postgres import postgres


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab whose server has TLS, if it can."""
    with postgres(hba=HBA) as server:
        make_role(server)
        root = None
        if tls.has_tls(server):
            folder = tmp_path_factory.mktemp("tls")
            root = tls.serve_tls(server, "localhost", folder)
        with Lab(server, root) as lab:
            yield lab
