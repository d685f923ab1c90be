"""psycopg2 under uWSGI's async engines greenlet and uGreen.

Importing it patches nothing. It raises `ImportError` outside of uWSGI's processes, and
under uWSGI's gevent engine, for which `psycogreen.gevent` is the module.
"""

from __future__ import annotations

import operator
import platform
import select
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial, wraps
from math import ceil
from threading import get_ident
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from psycopg2.extensions import get_wait_callback

from psycogreen import _install
from psycogreen._uwsgi import engine

try:
    import uwsgi
except ModuleNotFoundError as ex:
    msg = (
        "psycogreen.uwsgi works only in uWSGI's processes, which have the module "
        "'uwsgi': run the application with "
        "uwsgi --async N --greenlet --import psycogreen.integrations.uwsgi"
    )
    raise ImportError(msg, name="uwsgi") from ex

from psycogreen._errors import wait_timeout
from psycogreen._wait import native
from psycogreen._wait.callback import Framework, wait_callback

if TYPE_CHECKING:
    from psycopg2.extensions import connection

__all__ = ["bound_stack", "patch_psycopg", "uwsgi_wait_callback"]

P = ParamSpec("P")
R = TypeVar("R")

# A longer wait takes several suspensions: uWSGI's limit is a C int.
_LONGEST_TURN = 3600  # seconds


def patch_psycopg(
    *,
    resolve_hosts: bool | None = None,
    cancel_interrupted: bool | None = None,
    replace: bool = False,
) -> None:
    """Make psycopg2 wait with uWSGI's async engine, in this process and its forks.

    The same as ``psycogreen.patch_psycopg("uwsgi", ...)``; see
    `psycogreen.patch_psycopg` for *replace*, repetition, and what is raised.
    *resolve_hosts* and *cancel_interrupted* have no effect, as `psycogreen.status`
    shows: both need a native thread, and none runs while uWSGI's loop waits. Raise
    `RuntimeError` if uWSGI runs neither greenlet nor uGreen, or runs uGreen and
    psycogreen's C extension is missing. Under uGreen it writes to uWSGI's log which
    options are missing that keep workers from crashing.
    """
    _find_engine()
    before = get_wait_callback()
    _install.install(
        uwsgi_wait_callback,
        wait_socket=_wait_socket,
        in_hub=_in_hub,
        identify=_identify if engine.engine() == "ugreen" else None,
        threads=False,
        resolve=None,
        resolve_hosts=False,
        cancel_interrupted=False,
        replace=replace,
    )
    if get_wait_callback() is not before:
        for danger in engine.dangers():
            uwsgi.log(f"psycogreen: warning: {danger}")


def bound_stack(application: Callable[P, R]) -> Callable[P, R]:
    """Wrap *application*, a WSGI callable, so that it cannot overrun its stack.

    Under uGreen on Python 3.14 or newer, deep recursion in C, as in nested JSON, crashes
    the worker. In the wrapped application it raises `RecursionError`, as in any thread.
    This reads the process's memory map in each request. Code that a response's generator
    runs between its pieces is not protected.

    In all other cases it returns *application* itself.
    """
    if sys.version_info < (3, 14) or engine.engine() != "ugreen":
        return application
    try:
        from psycogreen._uwsgi import _ugreen
    except ImportError:  # patch_psycopg() raises the error; nothing is suspended
        return application

    @wraps(application)
    def bounded(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _ugreen.on_green_stack():
            return application(*args, **kwargs)
        _ugreen.enter_stack()
        try:
            return application(*args, **kwargs)
        finally:
            _ugreen.leave_stack()

    return bounded


@dataclass(frozen=True)
class _Engine:
    """How a request is suspended."""

    in_request: Callable[[], bool]
    """Returns whether this code runs in a request, which can be suspended."""
    suspend: Callable[[], object]


@cache
def _find_engine() -> _Engine:
    match engine.engine():
        case "greenlet":
            return _greenlet()
        case "ugreen":
            return _ugreen()
        case "gevent":
            msg = (
                "uWSGI runs gevent here, not greenlet or uGreen: use psycogreen.gevent"
            )
            raise ImportError(msg)
        case _:
            raise RuntimeError(engine.why_none())


def _greenlet() -> _Engine:
    from greenlet import getcurrent

    # uWSGI sets the attribute on the greenlets that it makes for requests. suspend() in
    # any other greenlet would switch to one that has no request.
    return _Engine(lambda: hasattr(getcurrent(), "uwsgi_wsgi_req"), uwsgi.suspend)


def _ugreen() -> _Engine:
    if engine.has_jit():
        msg = (
            "uGreen cannot be used with CPython's JIT compiler, which records "
            "the instructions of all requests as one sequence: unset PYTHON_JIT; or "
            "use --gevent N or --async N --greenlet"
        )
        raise RuntimeError(msg)
    try:
        from psycogreen._uwsgi import _ugreen

        _ugreen.prepare()
    except (ImportError, OSError) as ex:
        msg = (
            "uGreen needs psycogreen's C extension, which is missing or does not work "
            f"with this Python ({platform.python_version()}: {ex}): install a C "
            "compiler and Python's header files, then pip install --force-reinstall "
            "--no-cache-dir --no-binary psycogreen psycogreen; or use --gevent N or "
            "--async N --greenlet"
        )
        raise RuntimeError(msg) from ex
    return _Engine(_ugreen.on_green_stack, _ugreen.suspend)


try:
    _found = _find_engine()
except RuntimeError:  # patch_psycopg() raises it again
    _found = _Engine(lambda: False, uwsgi.suspend)


def _wait_socket(fd: int, *, write: bool, timeout: float | None) -> None:
    if not _found.in_request():
        if not _is_ready(fd, write=write, timeout=timeout):
            raise wait_timeout(timeout or 0)
    elif timeout is None:
        _suspend_until_ready(fd, write=write, limit=0)
    else:
        _suspend_at_most(fd, write=write, timeout=timeout)


def _in_hub() -> bool:
    """Return whether the worker's only thread is not in a request.

    It must not wait there: the connection may be in use by one of its requests.
    """
    return not _found.in_request() and native.is_main_thread() and uwsgi.worker_id() > 0


def _identify() -> int:
    """Return a number that identifies the request or the native thread.

    uGreen's requests are not greenlets, but each has its own socket.
    """
    return 1 + uwsgi.connection_fd() if _found.in_request() else get_ident()


def _suspend_at_most(fd: int, *, write: bool, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    # uWSGI does not report why it resumes a request. Its timeout counts clock ticks of
    # whole seconds: the first tick may come immediately.
    while not _is_ready(fd, write=write, timeout=0):
        left = deadline - time.monotonic()
        if left <= 0:
            raise wait_timeout(timeout)
        _suspend_until_ready(fd, write=write, limit=ceil(min(left, _LONGEST_TURN)))


def _suspend_until_ready(fd: int, *, write: bool, limit: int) -> None:
    """Suspend the request, for at most *limit* of uWSGI's seconds; 0 is no limit."""
    wait_fd = uwsgi.wait_fd_write if write else uwsgi.wait_fd_read
    # C makes both calls, so that no other code runs between them. Between two lines of
    # Python, a signal handler or a destructor may make a query. The end of its wait
    # would also remove this descriptor from uWSGI's list for the request, and the
    # request would never be resumed.
    calls: list[Callable[[], object]] = [partial(wait_fd, fd, limit), _found.suspend]
    deque(map(operator.call, calls), maxlen=0)


def _is_ready(fd: int, *, write: bool, timeout: float | None) -> bool:
    """Block this thread until *fd* is ready, for at most *timeout* seconds."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT if write else select.POLLIN)
    return bool(poll.poll(None if timeout is None else ceil(timeout * 1000)))


# uWSGI has no hub, so there is no epoll set: only its own calls can wait.
@wait_callback(Framework(_wait_socket, epoll_set=lambda: None))
def uwsgi_wait_callback(conn: connection, timeout: float | None = None) -> None:
    """Wait until *conn* is ready, letting other requests run meanwhile.

    psycopg2 calls it after `patch_psycopg()` has installed it. An application may also
    call it itself, after ``psycopg2.connect(..., async_=True)`` and after each
    ``execute()`` on such a connection.

    *timeout* limits each single wait for the socket, in seconds; ``None`` or a
    negative number is no limit. uWSGI counts whole seconds: a wait ends up to
    two seconds after its limit, never before. To install it with a limit::

        psycopg2.extensions.set_wait_callback(
            functools.partial(uwsgi_wait_callback, timeout=1))

    Outside a request it blocks the thread: at import, in hooks, in mules and spoolers,
    in native threads, and in a uWSGI without either engine.

    Raise `psycogreen.WaitTimeout` when a wait takes longer.
    """
