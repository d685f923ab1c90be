"""The pages of the documentation, and the code that they show."""

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.rst", *sorted((ROOT / "docs").glob("*.rst"))]


def code_blocks(path, language):
    """Return the blocks of a language in a reStructuredText file."""
    found = re.findall(
        rf"^( *)\.\. code-block:: {language}\n\n((?:\1    ?.*\n|\n)+)",
        path.read_text(),
        re.MULTILINE,
    )
    return [textwrap.dedent(block) for _, block in found]
