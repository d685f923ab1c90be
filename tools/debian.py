"""A Debian sid in .cache/sid, which has Pythons that this machine may not have.

debootstrap makes it on first use, as root, from its default mirror. Commands run in
it as in a machine of its own: what they mount and start ends with them.
"""

from __future__ import annotations

import ast
import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path

from commands import run

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".cache" / "sid"
PROJECT = Path("/psycogreen")
PYTHONS = ("3.14", "3.15")

_PACKAGES = ["ca-certificates", "g++", "gcc", "git", "libc6-dev", "libcrypt-dev"]
_PACKAGES += [f"python{each}-{part}" for each in PYTHONS for part in ("dev", "venv")]
# Installed once /proc and /dev are there, which their scripts need.
_SERVERS = ["libpq-dev", "make", "pgbouncer", "postgresql", "redis-server"]


class Unavailable(Exception):
    """The folder cannot be made here; the message says why."""


def prepare() -> None:
    """Make the folder, if it is not there; bring the project in it up to date.

    Wait for another process that uses it, and keep others waiting until this one ends.
    Raise `Unavailable` without root's rights, where nothing may be mounted, as in most
    containers, without debootstrap, or if the packages cannot be downloaded.
    """
    if os.geteuid() != 0:
        msg = "a Debian sid folder needs root's rights"
        raise Unavailable(msg)
    mount = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "mount",
        "-t",
        "tmpfs",
        "x",
        "/mnt",
    ]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        msg = "a Debian sid folder needs the right to mount (CAP_SYS_ADMIN)"
        raise Unavailable(msg)
    if not shutil.which("debootstrap"):
        msg = "a Debian sid folder needs debootstrap: apt-get install debootstrap"
        raise Unavailable(msg)
    FOLDER.parent.mkdir(exist_ok=True)
    fcntl.flock(
        os.open(FOLDER.with_suffix(".lock"), os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX
    )
    made = FOLDER / "made"
    packages = " ".join([*_PACKAGES, *_SERVERS])
    if not made.exists() or made.read_text() != packages:
        shutil.rmtree(FOLDER, ignore_errors=True)
        _make()
        made.write_text(packages)
    for name in ("hosts", "resolv.conf"):
        shutil.copy(f"/etc/{name}", FOLDER / "etc" / name)
    _write_pip_configuration(FOLDER / "etc" / "pip.conf")
    _copy_project()


def enter(*command: str, **env: str) -> int:
    """Run *command* in the folder, in the project's folder there.

    *env* is added to the environment. Return the exit status.
    """
    script = ["mount -t proc proc proc", "mount --rbind /dev dev"]
    script += ["mount -t tmpfs tmpfs tmp"]
    for path in _pip_paths():
        _make_place(path)
        script.append(
            f"mount --bind {shlex.quote(str(path))} .{shlex.quote(str(path))}"
        )
    # The shell stays, to reap what the command leaves behind.
    inside = f'cd {PROJECT} 2>/dev/null || cd /; "$@"; exit $?'
    script.append(f"exec chroot . sh -c '{inside}' sh {shlex.join(command)}")
    unshare = ["unshare", "--mount", "--propagation=private", "--pid", "--fork"]
    result = subprocess.run(
        [*unshare, "--kill-child", "sh", "-ec", "\n".join(script)],
        cwd=FOLDER,
        env={**os.environ, "HOME": "/root", "LC_ALL": "C.UTF-8", **env},
        check=False,
    )
    return result.returncode


def _make() -> None:
    """Make the folder.

    All packages are downloaded before they are installed: what fails first is the
    network's fault, or Debian's, what fails then is not.
    """
    include = f"--include={','.join(_PACKAGES)}"
    debootstrap = ["debootstrap", "--variant=minbase", include]
    try:
        run(*debootstrap, "--download-only", "sid", FOLDER)
    except RuntimeError as ex:
        msg = f"a Debian sid folder cannot be downloaded: {ex}"
        raise Unavailable(msg) from ex
    run(*debootstrap, "sid", FOLDER)
    # The servers' packages start none of them.
    policy = FOLDER / "usr" / "sbin" / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    if _install_servers("--download-only"):
        msg = "a Debian sid folder cannot be downloaded: apt-get has said why"
        raise Unavailable(msg)
    if status := _install_servers("--no-download"):
        msg = f"apt-get install {' '.join(_SERVERS)}: status {status} in {FOLDER}"
        raise RuntimeError(msg)


def _install_servers(option: str) -> int:
    install = ["apt-get", "-qq", "install", "--no-install-recommends", option]
    return enter(*install, *_SERVERS, DEBIAN_FRONTEND="noninteractive")


def _copy_project() -> None:
    """Replace the project's files in the folder; what was made from them stays."""
    target = FOLDER / PROJECT.relative_to("/")
    target.mkdir(exist_ok=True)
    for each in target.iterdir():
        if each.name not in (".cache", "dist") and not each.name.startswith(".venv"):
            shutil.rmtree(each) if each.is_dir() else each.unlink()
    listed = run(
        "git",
        "-C",
        ROOT,
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    )
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def _pip_settings() -> dict[str, str]:
    """Return how pip is configured on this machine, by "section.key"."""
    listed = run(sys.executable, "-m", "pip", "config", "list")
    pairs = (line.partition("=")[::2] for line in listed.splitlines())
    return {key: ast.literal_eval(value) for key, value in pairs}


def _write_pip_configuration(path: Path) -> None:
    """Write the same to a file, without what the environment brings along anyway."""
    written = RawConfigParser()
    for setting, value in _pip_settings().items():
        section, _, key = setting.partition(".")
        if section != ":env:":
            written.read_dict({section: {key: value}})
    with path.open("w") as file:
        written.write(file)


def _pip_paths() -> list[Path]:
    """Return the files and folders of this machine that pip's configuration names."""
    paths = set()
    for word in " ".join(_pip_settings().values()).split():
        path = Path(word.removeprefix("file://"))
        if path.is_absolute() and path.exists():
            # The pages of an index link to files that lie beside it.
            paths.add(path.parent if word.startswith("file:") else path)
    return sorted(paths)


def _make_place(path: Path) -> None:
    """Make what *path* of this machine is mounted on."""
    place = FOLDER / path.relative_to("/")
    if path.is_dir():
        place.mkdir(parents=True, exist_ok=True)
    elif not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
