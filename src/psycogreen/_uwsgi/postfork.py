"""Functions that uWSGI calls in each process that it forks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import uwsgi


def after_fork(function: Callable[[], None]) -> None:
    """Register *function* for uWSGI to call in each process that it forks.

    uWSGI has one hook. When uwsgidecorators is imported, it replaces the hook by one
    that calls a list of functions: import it now, before the application does. Without
    a master it cannot be imported.
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
