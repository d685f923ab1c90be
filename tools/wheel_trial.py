"""Test an installed wheel. tools/wheels.py runs this in a new environment."""

from __future__ import annotations

import ctypes
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from load import requests
from pages import ROOT, code_blocks
from servers import HttpServer

import psycogreen
from psycogreen._check.postgres import postgres

COMMAND = "gunicorn -k gevent -c python:psycogreen.integrations.gunicorn_conf app:app"


def main() -> None:
    """Try the extensions, then the README's command with its application."""
    assert ROOT not in Path(psycogreen.__file__).parents
    psycogreen.patch_psycopg("gevent")
    assert psycogreen.status().compiled, psycogreen.status()
    # Only uWSGI's processes can import it; here it is loaded, with all it refers to.
    ctypes.PyDLL(find_spec("psycogreen._uwsgi._ugreen").origin)
    psycogreen.unpatch_psycopg()
    with tempfile.TemporaryDirectory() as folder, postgres() as server:
        [application] = (
            block
            for block in code_blocks(ROOT / "README.rst", "python")
            if "Flask(__name__)" in block
        )
        (Path(folder) / "app.py").write_text(application)
        assert any(
            COMMAND in each for each in code_blocks(ROOT / "README.rst", "console")
        )
        serve(Path(folder), PGHOST=server.host, PGPORT=str(server.port))


def serve(folder: Path, **env: str) -> None:
    """Run the README's command: 20 requests, each a second of waiting, are one second."""
    command = [sys.executable, "-m", *COMMAND.split(), "--bind=127.0.0.1:0"]
    with HttpServer(*command, env={"PGUSER": "postgres", **env}, cwd=folder) as server:
        server.await_listening()
        server.await_line("psycogreen: gevent wait callback installed")
        results = requests(20, server.url)
        assert not any(each.error for each in results), server.output
        assert max(each.end for each in results) < 10  # of 20


if __name__ == "__main__":
    main()
