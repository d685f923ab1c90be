"""psycopg2 under gevent.

Importing this module imports gevent and patches nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycogreen import _install
from psycogreen._requirements import require

require("gevent")

from gevent.socket import wait_read, wait_write

from psycogreen._waiting import timed_out, wait

if TYPE_CHECKING:
    from psycopg2.extensions import connection

__all__ = ["gevent_wait_callback", "patch_psycopg"]


def patch_psycopg(*, replace: bool = False) -> None:
    """Make psycopg2 wait with gevent's loop, in this process and its forks.

    The same as ``psycogreen.patch_psycopg("gevent", ...)``; see
    `psycogreen.patch_psycopg` for *replace*, repetition, and what is raised.
    """
    _install.install(gevent_wait_callback, replace=replace)


def gevent_wait_callback(conn: connection, timeout: float | None = None) -> None:
    """Wait until *conn* is ready, letting other greenlets run meanwhile.

    psycopg2 calls it once `patch_psycopg()` has installed it. An application
    may call it too, after ``psycopg2.connect(..., async_=True)`` and after each
    ``execute()`` on such a connection.

    *timeout* limits each single wait for the socket, in seconds; ``None`` or a
    negative number is no limit. To install it with a limit::

        psycopg2.extensions.set_wait_callback(
            functools.partial(gevent_wait_callback, timeout=1))

    Raise `psycogreen.WaitTimeout` when a wait takes longer, and whatever is
    thrown into the waiting greenlet, such as a `gevent.Timeout`.
    """
    wait(conn, _wait_socket, timeout)


def _wait_socket(fd: int, *, write: bool, timeout: float | None) -> None:
    wait_ready = wait_write if write else wait_read
    if timeout is None:
        wait_ready(fd)
    else:
        wait_ready(fd, timeout, timed_out(timeout))
