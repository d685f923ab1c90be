"""Large objects, cooperatively: psycopg2's own methods, called in native threads.

libpq's functions for large objects block. On a non-blocking connection they fail if the
data does not fit into the socket's buffer. So each call makes the connection blocking
and runs in a native thread, which holds the connection's lock meanwhile. Therefore the
call takes the connection's turn. Results and errors are psycopg2's own.
"""

from __future__ import annotations

import operator
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import psycopg2
from psycopg2.extensions import (
    POLL_OK,
    POLL_READ,
    STATUS_PREPARED,
    connection,
    get_wait_callback,
    lobject,
)

from psycogreen._errors import WaitTimeout
from psycogreen._interface.libpq import library
from psycogreen._interface.members import first_object
from psycogreen._interface.replacing import Replacement, method
from psycogreen._interface.turns import give, take
from psycogreen._wait import native
from psycogreen._wait.cancel import CANCEL_WAIT, cancel
from psycogreen._wait.offload import in_thread

_OID = 0xFFFFFFFF


@method(connection, "lobject")
def _lobject(
    refuse: Callable[..., lobject],
    self: connection,
    *args: Any,  # noqa: ANN401
    **kwargs: Any,  # noqa: ANN401
) -> lobject:
    try:
        return refuse(self, *args, **kwargs)
    except psycopg2.ProgrammingError:
        if self.async_:
            raise
    if self.status == STATUS_PREPARED:
        msg = "lobject cannot be used with a prepared two-phase transaction"
        raise psycopg2.ProgrammingError(msg)
    return _make(self, *args, **kwargs)


def _make(
    conn: connection,
    oid: Any = 0,  # noqa: ANN401
    mode: str | None = "",
    new_oid: Any = 0,  # noqa: ANN401
    new_file: str | None = None,
    lobject_factory: Callable[..., lobject] = lobject,
) -> lobject:
    """Do what `connection.lobject` does after its checks."""
    arguments = [conn, operator.index(oid) & _OID, mode, operator.index(new_oid) & _OID]
    if new_file is not None:
        arguments.append(new_file)
    made = lobject_factory(*arguments)
    if not isinstance(made, lobject):
        msg = "lobject factory must be subclass of psycopg2.extensions.lobject"
        raise TypeError(msg)
    return made


@method(lobject, "__init__")
def _init(
    original: Callable[..., None], self: lobject, *args: object, **kwargs: object
) -> None:
    conn = args[0] if args else None
    if not isinstance(conn, connection) or conn.closed or conn.autocommit:
        original(self, *args, **kwargs)
        return
    _call(conn, partial(original, self, *args, **kwargs))


def _offloaded(name: str) -> Replacement:
    @method(lobject, name)
    def call(original: Callable[..., Any], self: lobject, *args: object) -> Any:  # noqa: ANN401
        # A large object has no attribute for its connection. It is the first member of
        # its structure, in all of psycopg2 2.
        conn = first_object(self)
        if conn is None or conn.closed:
            return original(self, *args)
        return _call(conn, partial(original, self, *args))

    return call


def _call(conn: connection, function: Callable[[], Any]) -> Any:  # noqa: ANN401
    """Return the result of *function*, which calls libpq's blocking functions."""
    taken = take(conn)
    try:
        with _blocking(conn):
            return in_thread(function, partial(_wait_for_thread, conn))
    finally:
        if taken:
            give(conn)


@contextmanager
def _blocking(conn: connection) -> Iterator[None]:
    """Make *conn* blocking during the block."""
    libpq = library()
    was_nonblocking = libpq.PQisnonblocking(conn.pgconn_ptr)
    libpq.PQsetnonblocking(conn.pgconn_ptr, 0)
    try:
        yield
    finally:
        # Without effect if the connection was closed meanwhile.
        libpq.PQsetnonblocking(conn.pgconn_ptr, was_nonblocking)


def _wait_for_thread(
    conn: connection, fd: int, *, write: bool, timeout: float | None
) -> None:
    """Wait for *fd*, which the thread makes readable; close *conn* if interrupted."""
    try:
        wait_readable(conn, fd, write=write, timeout=timeout)
    except BaseException as ex:
        cancel(conn, partial(wait_readable, conn), ex)
        # When the session ends, the thread's call ends and releases the lock.
        _shut_down(conn.fileno())
        with suppress(WaitTimeout):
            native.wait_socket(fd, write=False, timeout=CANCEL_WAIT)
            conn.close()
        raise


def wait_readable(
    conn: connection, fd: int, *, write: bool, timeout: float | None
) -> None:
    """Wait for *fd* as the wait callback does; a `psycogreen._wait.native.SocketWait`."""
    wait: Any = get_wait_callback()
    if wait is None:  # removed since the call began
        native.wait_socket(fd, write=write, timeout=timeout)
    elif timeout is None:
        wait(_Readable(conn, fd))
    else:
        wait(_Readable(conn, fd), timeout=timeout)


class _Readable:
    """A descriptor in the form of a connection, so that the wait callback waits for it."""

    # Asynchronous: the wait callback must not cancel a query.
    async_ = 1

    def __init__(self, conn: connection, fd: int) -> None:
        self.info = conn.info
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def poll(self) -> int:
        try:
            native.wait_socket(self._fd, write=False, timeout=0)
        except WaitTimeout:
            return POLL_READ
        return POLL_OK


def _shut_down(fd: int) -> None:
    """Shut down the socket *fd*, also for other threads that use it."""
    make = native.original("socket", "socket")
    with make(fileno=os.dup(fd)) as duplicate, suppress(OSError):
        duplicate.shutdown(socket.SHUT_RDWR)


REPLACEMENTS = (
    _lobject,
    _init,
    *map(
        _offloaded,
        ("read", "write", "seek", "tell", "truncate", "unlink", "close", "export"),
    ),
)
