"""Warn about a process in which nothing is monkey-patched.

If the framework was given by name, the callback may be installed before the monkey patch.
So this is checked when a thread waits with a hub for the first time, and only then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

logger = logging.getLogger("psycogreen.monkey_patch")
"""A separate logger: a program that patches nothing on purpose can turn off only this
warning."""

_is_done = False


def warn_once(patch_call: str, is_patched: Callable[[str], bool]) -> None:
    """Warn, once in this process, if none of the modules that block is monkey-patched.

    *patch_call* is the call that patches them. There is no warning if some are patched:
    that is on purpose.
    """
    global _is_done
    if _is_done:
        return
    _is_done = True
    if not any(map(is_patched, ("socket", "thread", "threading", "time", "select"))):
        logger.warning(
            "psycogreen: nothing is monkey-patched in this process: other greenlets run while "
            "psycopg2 waits, and every other wait (socket, sleep, lock) blocks them "
            "all: call %s before all other imports; if the program waits with the "
            "framework's own functions only, "
            "logging.getLogger(%r).setLevel('ERROR') turns this warning off",
            patch_call,
            logger.name,
        )


def leave_to_others() -> None:
    """Turn off the warning: a server's plugin, or the check, reports it with a remedy."""
    global _is_done
    _is_done = True
