"""Environments of their own for other versions of gunicorn, kept in .cache/."""

import shutil
import subprocess
import sys
import venv

from servers import ROOT

EVENTLET_WORKER = "psycogreen.integrations.eventlet_worker.EventletWorker"

# What each needs besides: the oldest eventlet goes with the oldest gunicorn.
VERSIONS = {"23": ["eventlet==0.36.1"], "25": [], "26": [], "27": []}

_ALSO = ["eventlet", "flask", "h2", "psycopg2-binary", "sqlalchemy"]


def environment_with_gunicorn(version, wheel):
    """Return the Python of the environment with that gunicorn and *wheel*."""
    folder = ROOT / ".cache" / f"gunicorn-{version}"
    requirements = [f"gunicorn[gevent]=={version}.*", *VERSIONS[version], *_ALSO]
    contents = "\n".join([sys.version, *requirements])
    stamp = folder / "contents"
    if not stamp.exists() or stamp.read_text() != contents:
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        _install(folder, *requirements)
        stamp.write_text(contents)
    _install(folder, "--no-deps", "--force-reinstall", str(wheel))
    return str(folder / "bin" / "python")


def build_wheel(folder):
    """Build psycogreen's wheel into *folder*, and return its path."""
    _pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    [wheel] = folder.glob("*.whl")
    return wheel


def _install(folder, *arguments):
    _pip(str(folder / "bin" / "python"), "install", *arguments)


def _pip(python, *arguments):
    command = [python, "-m", "pip", "--quiet", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
