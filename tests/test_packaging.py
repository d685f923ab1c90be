"""The contents of the distributions, and their installation."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_bytes

import pytest
from conftest import ROOT

import psycogreen

SOURCE = ROOT / "src"

FOLDERS = ("benchmarks", "demo", "docs", "examples", "src", "tests", "tools")


def test_wheel(distributions):
    """The wheel has every module, the marker for type checkers and the licence."""
    wheel, _ = distributions
    names = zipfile.ZipFile(wheel).namelist()
    modules = {str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py")}
    assert {"psycogreen/gevent.py", "_psycogreen_plugin.py"} <= modules <= set(names)
    assert {"psycogreen/py.typed", "psycogreen/_uwsgi/_ugreen.pyi"} <= set(names)
    assert not any(name.endswith(".c") for name in names)
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    metadata = next(name for name in names if name.endswith("/METADATA"))
    assert (
        "License-Expression: BSD-3-Clause"
        in zipfile.ZipFile(wheel).read(metadata).decode()
    )


def test_sdist(distributions):
    """The sdist has all files that the wheel and the tests need."""
    _, sdist = distributions
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    expected = {
        *("CHANGES.rst", "LICENSE", "Makefile", "README.rst"),
        *("noxfile.py", "pyproject.toml", "setup.py"),
    }
    for folder in FOLDERS:
        paths = (path for path in (ROOT / folder).rglob("*") if path.is_file())
        expected |= {
            str(path.relative_to(ROOT))
            for path in paths
            if path.suffix not in (".pyc", ".so") and ".egg-info" not in str(path)
        }
    assert expected <= names


def test_metadata(distributions):
    """The metadata has only extras for users, and absolute links."""
    wheel, _ = distributions
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("/METADATA")]
        metadata = message_from_bytes(archive.read(name))
    extras = ["celery", "eventlet", "gevent", "gunicorn", "metrics", "uwsgi"]
    assert sorted(metadata.get_all("Provides-Extra")) == extras
    assert {url.split(", ")[0] for url in metadata.get_all("Project-URL")} == {
        "Changes",
        "Documentation",
        "Source",
    }
    readme = metadata.get_payload()
    images = re.findall(r"image:: (\S+)", readme)
    links = re.findall(r"<([^<>\s]+)>`_|^\.\. _.*: (\S+)$", readme, re.MULTILINE)
    links = list(map("".join, links))
    assert images
    assert links
    assert all(url.startswith("https://") for url in [*images, *links])


EXTENSION = "psycogreen/_uwsgi/_ugreen.cpython"


@pytest.mark.skipif(sys.platform != "linux", reason="the extension is for Linux")
@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler (cc)")
def test_extension(distributions):
    """The wheel has the C extension if there is a compiler."""
    wheel, _ = distributions
    names = zipfile.ZipFile(wheel).namelist()
    assert len([name for name in names if name.startswith(EXTENSION)]) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the extension is for Linux")
def test_extension_is_optional(distributions, tmp_path):
    """If the C extension cannot be compiled, the wheel has all modules but that."""
    _, sdist = distributions
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", str(sdist)]
    result = subprocess.run(
        [*command, "--no-cache-dir", "--wheel-dir", str(tmp_path)],
        env={**os.environ, "CC": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.startswith(EXTENSION)]
    assert "psycogreen/uwsgi.py" in names


def test_fresh_install(distributions, tmp_path):
    """In a new environment psycogreen names the packages to install, then works."""
    wheel, _ = distributions
    venv.create(tmp_path / "venv")
    python = str(tmp_path / "venv" / "bin" / "python")

    def run(*arguments):
        return subprocess.run(
            [python, *arguments], capture_output=True, text=True, check=False
        )

    def install(package):
        pip = [sys.executable, "-m", "pip", f"--python={python}", "install", package]
        subprocess.run(pip, check=True)

    install(str(wheel))
    missing = run("-P", "-c", "import psycogreen")
    assert missing.returncode == 1
    assert "pip install psycopg2-binary" in missing.stderr
    install("psycopg2-binary")
    code = "import psycogreen; psycogreen.patch_psycopg('gevent')"
    missing = run("-P", "-c", code)
    assert "pip install 'gevent>=" in missing.stderr
    unchecked = run("-P", "-m", "psycogreen", "check")
    assert unchecked.returncode == 2
    assert "no framework is installed: pip install gevent" in unchecked.stderr
    installed = run("-P", "-c", "import psycogreen; print(psycogreen.__version__)")
    assert installed.stdout.strip() == psycogreen.__version__
