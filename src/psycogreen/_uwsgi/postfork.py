"""Functions that uWSGI calls in each process that it forks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import uwsgi


def after_fork(function: Callable[[], None]) -> None:
    """Have uWSGI call *function* too in each process that it forks.

    uWSGI knows one hook. uwsgidecorators makes it a list, and replaces what it finds
    when it is imported: better now than by the application, later. Without a master it
    cannot be imported by anybody.
    """
    before = getattr(uwsgi, "post_fork_hook", None)
    if uwsgi.masterpid():
        with contextlib.suppress(ModuleNotFoundError):
            from uwsgidecorators import postfork

            if before and getattr(before, "__module__", "") != postfork.__module__:
                postfork(before)
            postfork(function)
            return

    def post_fork_hook() -> None:
        if before:
            before()
        function()

    uwsgi.post_fork_hook = post_fork_hook
