"""Large objects, cooperatively.

``read()`` and ``write()`` send queries, for one piece of the data after another.

The other methods are psycopg2's own, called in native threads. libpq's functions for large
objects block. On a non-blocking connection they fail if the data does not fit into the
socket's buffer. So each call makes the connection blocking and runs in a native thread,
which holds the connection's lock meanwhile. Therefore the call takes the connection's
turn. Results and errors are psycopg2's own.
"""

from __future__ import annotations

import ctypes
import functools
import operator
import os
import socket
import struct
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
    encodings,
    get_wait_callback,
    lobject,
)

from psycogreen._errors import WaitTimeout
from psycogreen._interface.functions import call
from psycogreen._interface.members import Member, first_object
from psycogreen._interface.replacing import Replacement, method
from psycogreen._interface.turns import give, guarded, has, take
from psycogreen._wait import native
from psycogreen._wait.cancel import CANCEL_WAIT, cancel
from psycogreen._wait.libpq import libpq
from psycogreen._wait.offload import in_thread

PIECE = 256 * 1024
"""The maximum number of bytes that one query reads or writes."""

_OID = 0xFFFFFFFF

_SSIZE = struct.Struct("n")
_INT4 = struct.Struct("!i")
_int4 = _INT4.pack

_oid = Member(lobject, "oid")
_write_original: Any = vars(lobject)["write"]

# A replication connection does not let its own attribute be read.
_autocommit_of = vars(connection)["autocommit"].__get__

_threads: bool


def configure(*, threads: bool) -> None:
    """Make calls in native threads from now on, if *threads* run during a wait.

    Under uWSGI's own engines they do not, so there the calls block.
    """
    global _threads
    _threads = threads


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
    made = guarded(lobject_factory)(*arguments)
    if not isinstance(made, lobject):
        msg = "lobject factory must be subclass of psycopg2.extensions.lobject"
        raise TypeError(msg)
    return made


@method(lobject, "__init__")
def _init(
    original: Callable[..., None], self: lobject, *args: object, **kwargs: object
) -> None:
    conn = args[0] if args else None
    if not isinstance(conn, connection) or conn.closed or _autocommit_of(conn):
        original(self, *args, **kwargs)
        return
    _call(conn, partial(original, self, *args, **kwargs))


@method(lobject, "read")
def _read(original: Callable[..., Any], self: lobject, *args: Any) -> Any:  # noqa: ANN401
    try:
        [size] = _SSIZE.unpack(_SSIZE.pack(*(args or (-1,))))
    except struct.error:
        return original(self, *args)  # which raises
    with _in_turn(self) as conn:
        read = partial(call, conn, b"select pg_catalog.loread($1, $2)", _fd(self))
        data = b"".join(_read_pieces(read, size))
    if "b" in self.mode:
        return data
    return data.decode(encodings[conn.encoding])


def _read_pieces(read: Callable[[bytes], bytes], size: int) -> Iterator[bytes]:
    """Yield the data, up to *size* bytes; all of it if *size* is negative."""
    left = size
    while True:
        wanted = PIECE if size < 0 else min(PIECE, left)
        piece = read(_int4(wanted))
        yield piece
        left -= wanted
        if len(piece) < wanted or left == 0:
            return


@method(lobject, "write")
def _write(original: Callable[..., Any], self: lobject, *args: Any) -> Any:  # noqa: ANN401
    if len(args) != 1 or not isinstance(args[0], str | bytes):
        return original(self, *args)  # which raises
    with _in_turn(self) as conn:
        [data] = args
        if isinstance(data, str):
            data = data.encode(encodings[conn.encoding])
        write = partial(call, conn, b"select pg_catalog.lowrite($1, $2)", _fd(self))
        written = 0
        for start in range(0, len(data) or 1, PIECE):
            [count] = _INT4.unpack(write(data[start : start + PIECE]))
            written += count
        return written


def _write_while_it_blocks(original: Callable[..., Any]) -> Callable[..., Any]:
    """Let psycopg2's own method write more than a socket's buffer holds."""

    @functools.wraps(original)
    def write(self: lobject, /, *args: object) -> Any:  # noqa: ANN401
        conn = first_object(self)
        if get_wait_callback() or conn is None or conn.closed:
            return original(self, *args)
        with _blocking(conn):
            return original(self, *args)

    return write


@contextmanager
def _in_turn(self: lobject) -> Iterator[connection]:
    """Take the turn on the connection of *self*, which must be open and valid."""
    conn = first_object(self)
    if conn is None:  # it was not initialised, and psycopg2 raises
        _check(self)
    had_turn = has(conn)
    try:
        take(conn)
        _check(self)
        yield conn
    finally:
        if not had_turn:
            give(conn)


def _check(self: lobject) -> None:
    """Raise psycopg2's error if the large object is closed or no longer valid."""
    # psycopg2's method checks that before it refuses the argument.
    with suppress(TypeError):
        _write_original(self, None)


def _fd(self: lobject) -> bytes:
    # psycopg2 does not show the server's descriptor, which is the field before the OID.
    address = id(self) + _oid.offset - ctypes.sizeof(ctypes.c_int)
    return _int4(ctypes.c_int.from_address(address).value)


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
    had_turn = has(conn)
    try:
        take(conn)
        with _blocking(conn):
            if not _threads:
                return function()
            return in_thread(function, partial(_wait_for_thread, conn))
    finally:
        if not had_turn:
            give(conn)


@contextmanager
def _blocking(conn: connection) -> Iterator[None]:
    """Make *conn* blocking during the block."""
    library = libpq()
    was_nonblocking = library.PQisnonblocking(conn.pgconn_ptr)
    library.PQsetnonblocking(conn.pgconn_ptr, 0)
    try:
        yield
    finally:
        # Without effect if the connection was closed meanwhile.
        library.PQsetnonblocking(conn.pgconn_ptr, was_nonblocking)


def _wait_for_thread(
    conn: connection, fd: int, *, write: bool, timeout: float | None
) -> None:
    """Wait for *fd*, which the thread makes readable; close *conn* if interrupted."""
    try:
        wait_readable(conn, fd, write=write, timeout=timeout)
    except BaseException as ex:
        try:
            cancel(conn, partial(wait_readable, conn), ex)
        finally:  # a kill may interrupt the cancel request too
            _abandon(conn, fd)
        raise


def _abandon(conn: connection, fd: int) -> None:
    """Close *conn*. This ends the thread's call, which then releases the lock."""
    _shut_down(conn.fileno())
    with suppress(WaitTimeout):
        native.wait_socket(fd, write=False, timeout=CANCEL_WAIT)
        conn.close()


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
    _read,
    _write,
    Replacement(lobject, "write", _write_while_it_blocks),
    *map(
        _offloaded,
        ("seek", "tell", "truncate", "unlink", "close", "export"),
    ),
)
