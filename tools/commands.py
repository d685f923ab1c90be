"""Run commands that must succeed."""

from __future__ import annotations

import os
import subprocess


def run(*command: object, **env: str) -> str:
    """Run *command*, with *env* added to the environment; return what it prints.

    Raise `RuntimeError` with its output if it fails.
    """
    result = subprocess.run(
        list(map(str, command)),
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if result.returncode:
        msg = f"{' '.join(map(str, command))} failed:\n{result.stdout}"
        raise RuntimeError(msg)
    return result.stdout
