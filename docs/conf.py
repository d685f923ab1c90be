"""Sphinx's configuration: ``make docs`` builds the pages into build/docs."""

import os
import re
from pathlib import Path

# Of what is written in C, autodoc cannot tell the signature.
os.environ["PSYCOGREEN_PURE"] = "1"

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

from psycogreen import __version__

project = "psycogreen"
author = "The psycogreen developers"
project_copyright = author
release = version = __version__

extensions = ["sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"psycogreen {release}"
html_copy_source = False

# There is none outside uWSGI's processes.
autodoc_mock_imports = ["uwsgi", "uwsgidecorators"]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"

# `name` is a name of Python's. Those of other projects are not linked, for which
# Sphinx would have to fetch their lists of names.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!psycogreen\.).*"),
    ("py:class", r"psycogreen\.uwsgi\.[PR]"),  # type variables
    ("py:class", r"psycogreen\._.*"),  # private classes, in annotations
]

# Pages that may be left out of a build, with the links to them.
_OPTIONAL = ("benchmarks", "contributing", "copy", "eventlet", "faults", "uwsgi")
_HERE = Path(__file__).parent
_MISSING = [name for name in _OPTIONAL if not (_HERE / f"{name}.rst").exists()]
nitpick_ignore = [("std:doc", name) for name in _MISSING]
suppress_warnings = ["toc.not_readable"] if _MISSING else []
# Included by another page.
exclude_patterns = ["*-summary.rst", "*-table.rst"]


class PageLinks(SphinxTransform):
    """Makes a link to a page's file, which a code host shows, one to the built page.

    ``page.rst`` is the page, ``page.rst#label`` a label in it.
    """

    default_priority = 400  # like the reading of Sphinx's own links

    def apply(self, **kwargs: object) -> None:
        """Replace the links; Sphinx resolves them, and warns of what is not there."""
        for link in list(self.document.findall(nodes.reference)):
            found = re.fullmatch(r"([\w-]+)\.rst(?:#([\w-]+))?", link.get("refuri", ""))
            if not found:
                continue
            page, label = found.groups()
            link.replace_self(
                addnodes.pending_xref(
                    "",
                    nodes.inline("", link.astext()),
                    refdoc=self.env.docname,
                    refdomain="std",
                    reftype="ref" if label else "doc",
                    reftarget=label or page,
                    refexplicit=True,
                    refwarn=True,
                )
            )


def setup(app: Sphinx) -> None:
    """Add what is above to Sphinx."""
    app.add_transform(PageLinks)
