"""Imported by the uWSGI that ``check`` starts: runs the probe in the first worker."""

from __future__ import annotations

import os

import uwsgi

from psycogreen._check import probe
from psycogreen._uwsgi.postfork import after_fork

_probed_pid: int | None = None


def _probe() -> None:
    global _probed_pid
    if uwsgi.worker_id() == 1 and _probed_pid != os.getpid():
        _probed_pid = os.getpid()
        probe.in_uwsgi()


_probe()  # with --lazy-apps uWSGI imports this after the fork
after_fork(_probe)
