"""The code in the README and the documentation works."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import TESTS
from load import requests
from overlap import assert_at_once
from pages import PAGES, ROOT, code_blocks
from servers import HttpServer

import psycogreen

# Pages whose code needs a server's own process; the server's tests run it.
ELSEWHERE = {"uwsgi.rst": "test_uwsgi.py"}

# What a page's code takes for granted.
GIVEN = {
    "copy.rst": """
from gevent import monkey; monkey.patch_all()
import psycogreen; psycogreen.patch_psycopg()
import psycopg2
connection = psycopg2.connect("")
cursor = connection.cursor()
cursor.execute("create temporary table numbers (n int, name text)")
"""
}


BLOCKS = [
    pytest.param(GIVEN.get(path.name, "") + block, id=f"{path.name}-{n}")
    for path in PAGES
    if path.name not in ELSEWHERE
    for n, block in enumerate(code_blocks(path, "python"))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_python(block, python, libpq):
    """A block of Python code runs as a program."""
    python(block, timeout=25, **libpq)


def test_promise(python, libpq):
    """The README's 50 queries of one second all end."""
    [block] = [
        block
        for block in code_blocks(ROOT / "README.rst", "python")
        if "range(50)" in block
    ]
    assert python(block, timeout=25, **libpq).strip() == str(list(range(50)))


ODOO = """
from gevent import monkey; monkey.patch_all()
import psycopg2.extensions, psycopg2.extras
psycopg2.extensions.set_wait_callback(psycopg2.extras.wait_select)
"""


@pytest.mark.parametrize("before", [ODOO, ""], ids=["gevent", "others"])
def test_odoo(before, python):
    """The module for Odoo replaces the callback in Odoo's gevent process alone."""
    [module] = [
        block
        for block in code_blocks(ROOT / "docs" / "recipes.rst", "python")
        if "replace=True" in block
    ]
    printed = python(f"{before}{module}print(psycogreen.status().framework)")
    *log, framework = printed.splitlines()
    assert framework == ("gevent" if before else "None")
    assert ["replaced" in line for line in log] == [True] * bool(before)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_other_languages(path):
    """A code block's language is python, console or text."""
    text = path.read_text()
    languages = set(re.findall(r"\.\. code-block:: *(\S*)", text))
    assert languages <= {"python", "console", "text"}
    # A paragraph that ends so begins a block of which nobody knows what it is.
    assert not re.findall(r"^(?! *\.\. ).*::$", text, re.MULTILINE)
    if elsewhere := ELSEWHERE.get(path.name):
        assert path.name in (TESTS / elsewhere).read_text()


@pytest.mark.parametrize("path", PAGES[1:], ids=lambda path: path.name)
def test_links(path):
    """Links to other pages work on a code host and in Sphinx."""
    text = path.read_text()
    assert not re.findall(r":(?:doc|ref|download):`", text)
    for page, label in re.findall(r"<([\w-]+\.rst)(?:#([\w-]+))?>`_", text):
        assert not label or f"\n.. _{label}:\n" in (path.parent / page).read_text()
    assert not re.findall(r"<(?!https?:)[\w./-]+(?:\.py|\.ini|/\w+)>`_", text)


@pytest.mark.parametrize("path", PAGES[1:], ids=lambda path: path.name)
def test_examples_are_linked(path):
    """A page has a link to each file that it includes."""
    text = path.read_text()
    for name in re.findall(r"literalinclude:: \.\./(\S+)", text):
        assert f"github.com/psycopg/psycogreen/blob/HEAD/{name}\n" in text, name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_install_lines(path):
    """Install commands ask for this version or newer, and for no other pre-release."""
    for line in re.findall(r"pip install.*psycogreen.*", path.read_text()):
        assert re.search(r"'psycogreen(\[[\w,]+\])?>=2\.0\.0rc1'", line), line
        assert "--pre" not in line


REPOSITORY = r"https://(?:raw\.githubusercontent|github)\.com/psycopg/psycogreen/"


# Names of loggers, not of modules.
LOGGERS = {"psycogreen.monkey_patch"}


@pytest.mark.parametrize(
    "path", [*PAGES, ROOT / "CHANGES.rst"], ids=lambda path: path.name
)
def test_names(path):
    """Every module, class and function of psycogreen's that is named is there."""
    names = set(re.findall(r"psycogreen(?:\.[A-Za-z_]+)+", path.read_text()))
    assert [name for name in names - LOGGERS if not is_defined(name)] == []


def is_defined(name):
    """Return whether there is such a module, or its module's source has such a name."""
    _, *parts = name.split(".")
    place = Path(psycogreen.__file__).parent
    while parts and (
        (place / parts[0]).is_dir() or (place / f"{parts[0]}.py").exists()
    ):
        place /= parts.pop(0)
    source = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return not parts or re.search(rf"\b{parts[0]}\b", source.read_text())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_to_the_repository(path):
    """A link to a file of the repository points to an existing file."""
    for name in re.findall(
        rf"{REPOSITORY}(?:blob/|tree/)?HEAD/([\w./-]+)", path.read_text()
    ):
        assert (ROOT / name).exists(), name


def test_readme_links_are_absolute():
    """The README's links are absolute, so that they work on PyPI."""
    text = (ROOT / "README.rst").read_text()
    assert "blob/HEAD/docs/index.rst" in text
    targets = re.findall(
        r"<(\S+)>`_|^\.\. (?:_[^:]+|image:): (\S+)", text, re.MULTILINE
    )
    targets = ["".join(target) for target in targets]
    assert targets
    assert all(target.startswith("https://") for target in targets), targets


def test_examples_are_tested():
    """Every example that the documentation shows is run by some test."""
    shown = set()
    for path in PAGES:
        shown |= set(re.findall(r"literalinclude:: \.\./(\S+)", path.read_text()))
    assert shown
    tests = "".join(path.read_text() for path in TESTS.glob("test_*.py"))
    for name in shown:
        folder = Path(name).parts[1]
        stem = folder if folder == "django_project" else Path(name).stem
        # The framework is a parameter of the test of the two servers.
        generic = re.sub("^(gevent|eventlet)_", "{framework}_", stem)
        assert stem in tests or generic in tests, name


@pytest.mark.full
def test_first_screen(distributions, tmp_path, libpq):
    """The README's three commands start a green application in a new environment.

    The built wheel stands for the published one.
    """
    wheel, _ = distributions
    readme = ROOT / "README.rst"
    app = next(block for block in code_blocks(readme, "python") if "Flask" in block)
    (tmp_path / "app.py").write_text(app)
    commands = re.findall(r"^\$ (.*)", code_blocks(readme, "console")[0], re.MULTILINE)
    assert len(commands) == 3
    env = {
        **{key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ},
        **libpq,
        "PIP_FIND_LINKS": str(wheel.parent),
        "GUNICORN_CMD_ARGS": "--bind=127.0.0.1:0",
    }
    *prepare, run = commands
    script = "set -e; cd " + str(tmp_path) + "; " + "; ".join(prepare)
    subprocess.run(["bash", "-c", script], env=env, check=True, timeout=300)
    command = f"cd {tmp_path} && . venv/bin/activate && exec {run}"
    with HttpServer("bash", "-c", command, env=env) as server:
        server.await_listening()
        results = requests(20, server.url)
        assert [result.error for result in results] == [None] * 20
        assert_at_once(results, one_by_one=20)
        assert server.matches("psycogreen: gevent wait callback installed")
