"""The code in the README and in docs/ does what they say."""

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


def test_copy(server, python):
    """The block for COPY copies, with a wait callback installed."""
    [block] = code_blocks(TESTS.parent / "docs" / "copy.rst")
    program = f"""
from gevent import monkey; monkey.patch_all()
import psycogreen; psycogreen.patch_psycopg()
import psycopg2
cursor = psycopg2.connect({server.dsn!r}).cursor()
cursor.execute("create temporary table numbers (n int, name text)")
{block}
cursor.execute("select * from numbers")
print(cursor.fetchall())
"""
    assert python(program).strip() == "[(1, 'one')]"
