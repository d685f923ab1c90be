"""Virtual environments of other programs and versions, made once and kept in .cache/.

Several processes may ask for the same one at the same time: one of them makes it while
the others wait.
"""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from commands import run

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache"


@contextmanager
def locked() -> Iterator[None]:
    """Hold the lock of .cache/ and of builds, which write into the source tree."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def environment(
    name: str,
    python: Path | str,
    requirements: Sequence[str],
    prepare: Callable[[Path], object] = lambda folder: None,
) -> Path:
    """Return the folder of an environment with *requirements* and with psycogreen.

    It is made if there is none of that *name* with these requirements; *prepare* then
    installs into the folder what pip alone does not. psycogreen is installed again when
    its source has changed.
    """
    folder = CACHE / name
    made, installed = folder / "made", folder / "psycogreen"
    contents = "\n".join([_version(python), *requirements])
    with locked():
        if not made.exists() or made.read_text() != contents:
            run(python, "-m", "venv", "--clear", "--without-pip", folder)
            install(folder, *requirements)
            prepare(folder)
            made.write_text(contents)
        if not installed.exists() or installed.stat().st_mtime < _newest_source():
            install(folder, "--no-deps", "--force-reinstall", str(ROOT))
            installed.touch()
    return folder


def is_made(name: str) -> bool:
    """Return whether there is an environment of that name."""
    return (CACHE / name / "made").exists()


def install(folder: Path, *what: str, env: Mapping[str, str] | None = None) -> None:
    """Install into the environment, with *env* added to this process's environment."""
    pip = [sys.executable, "-m", "pip", f"--python={folder / 'bin' / 'python'}"]
    run(*pip, "install", "--quiet", "--no-compile", *what, **(env or {}))


def _version(python: Path | str) -> str:
    return run(python, "-c", "import sys; print(sys.version)")


def _newest_source() -> float:
    sources = [ROOT / "pyproject.toml", ROOT / "setup.py"]
    for suffix in ("py", "pyi", "c"):
        sources += (ROOT / "src").rglob(f"*.{suffix}")
    return max(path.stat().st_mtime for path in sources)
