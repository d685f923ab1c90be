"""The README's code does what it says."""

import re
import textwrap

from conftest import TESTS


def code_blocks(path):
    """Return the Python blocks of a reStructuredText file."""
    found = re.findall(
        r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)",
        path.read_text(),
        re.MULTILINE,
    )
    return [textwrap.dedent(block) for block in found]


def test_readme(server, python):
    """50 queries that take a second each are all done in far less than 50."""
    [block] = code_blocks(TESTS.parent / "README.rst")
    output = python(
        block,
        timeout=25,
        PGHOST=server.host,
        PGPORT=str(server.port),
        PGUSER="postgres",
    )
    assert output.strip() == str(list(range(50)))
