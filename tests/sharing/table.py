"""Make the table of operations on a connection in use: docs/sharing-table.rst.

Usage: table.py

It is made by a run of busy.py in threads, under gevent and under eventlet.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "docs" / "sharing-table.rst"

HOW = {"threads": "threads", "gevent": "gevent-libev", "eventlet": "eventlet-epolls"}
"""What the columns are called, and what busy.py is told for each."""

Outcomes = dict[str, dict[str, str]]


def outcomes(env: Mapping[str, str]) -> Outcomes:
    """Return what becomes of each operation in each of the ways."""

    def run(how: str) -> dict[str, str]:
        command = [sys.executable, "-P", str(HERE / "busy.py"), how]
        result = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=120, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr
        found: dict[str, str] = json.loads(result.stdout.splitlines()[-1])
        return found

    # One after the other: they use the same lock.
    return {name: run(how) for name, how in HOW.items()}


def text(found: Outcomes) -> str:
    """Return the table."""
    rows = [["operation", *found]]
    for operation in found["threads"]:
        # What psycopg2 says goes without saying.
        cells = [found[how][operation].partition(":")[0] for how in found]
        rows.append([f"``{operation}``", *cells])
    lines = [
        ".. Made by 'make sharing-table'.",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "",
    ]
    for row in rows:
        lines += [f"   {'*' if n == 0 else ' '} - {cell}" for n, cell in enumerate(row)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the table."""
    from conftest import HBA, environment, make_role

    from psycogreen._check.postgres import postgres

    with postgres(hba=HBA) as server:
        make_role(server)
        found = outcomes({**os.environ, **environment(server)})
    TABLE.write_text(text(found))
    print(TABLE.read_text())


if __name__ == "__main__":
    main()
