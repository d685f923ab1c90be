"""psycopg2 under eventlet.

Importing this module imports eventlet and patches nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycogreen import _install
from psycogreen._requirements import require

require("eventlet")

from eventlet import patcher
from eventlet.hubs import trampoline

from psycogreen._waiting import timed_out, wait

if TYPE_CHECKING:
    from psycopg2.extensions import connection

__all__ = ["eventlet_wait_callback", "patch_psycopg"]


def patch_psycopg(*, replace: bool = False) -> None:
    """Make psycopg2 wait with eventlet's hub, in this process and its forks.

    The same as ``psycogreen.patch_psycopg("eventlet", ...)``; see
    `psycogreen.patch_psycopg` for *replace*, repetition, and what is raised.
    The callback that eventlet brings along itself is taken over, whether
    ``eventlet.monkey_patch()`` comes before this call or after it.
    """
    _install.install(eventlet_wait_callback, replace=replace)
    # eventlet.monkey_patch() installs its own callback, over any other, unless
    # it has this on record. (Asking it for monkey_patch(psycopg=True) instead
    # would make a hub, too early before a fork.)
    patcher.already_patched["psycopg"] = True


def eventlet_wait_callback(conn: connection, timeout: float | None = -1) -> None:
    """Wait until *conn* is ready, letting other greenthreads run meanwhile.

    psycopg2 calls it once `patch_psycopg()` has installed it. An application
    may call it too, after ``psycopg2.connect(..., async_=True)`` and after each
    ``execute()`` on such a connection.

    *timeout* limits each single wait for the socket, in seconds; ``None`` or a
    negative number is no limit. To install it with a limit::

        psycopg2.extensions.set_wait_callback(
            functools.partial(eventlet_wait_callback, timeout=1))

    Raise `psycogreen.WaitTimeout` when a wait takes longer, and whatever is
    thrown into the waiting greenthread, such as an `eventlet.Timeout`.
    """
    wait(conn, _wait_socket, timeout)


def _wait_socket(fd: int, *, write: bool, timeout: float | None) -> None:
    if timeout is None:
        trampoline(fd, read=not write, write=write)
    else:
        trampoline(
            fd,
            read=not write,
            write=write,
            timeout=timeout,
            timeout_exc=timed_out(timeout),
        )
