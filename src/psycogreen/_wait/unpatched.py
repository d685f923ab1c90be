"""The warning of a process in which psycopg2 alone lets others run.

A callback that was asked for by name may be installed before the monkey patch, so this
is looked at when a thread first waits with a hub, and not again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

logger = logging.getLogger("psycogreen.monkey_patch")
"""A logger of its own: a program that patches nothing on purpose turns off this warning
and no other."""

_is_done = False


def warn_once(patch_call: str, is_patched: Callable[[str], bool]) -> None:
    """Warn if none of the modules that block is patched, once in this process.

    *patch_call* would patch them. A process that patches some of them does so on purpose.
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
    """Do not warn: a server's plugin, or the check, finds it out and has the remedy."""
    global _is_done
    _is_done = True
