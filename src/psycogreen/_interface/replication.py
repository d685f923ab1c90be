"""Replication, cooperatively.

psycopg2 reads a message without waiting, so its own method is called, for a moment without
the wait callback. This module has the parts that wait: the start, the loop of
``consume_stream()``, and the wait for room to send feedback.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import monotonic, time
from typing import Any

import psycopg2
from psycopg2._psycopg import ReplicationCursor
from psycopg2.extensions import connection, cursor

from psycogreen._errors import WaitTimeout
from psycogreen._interface.blocking import call_refused
from psycogreen._interface.copying import SLICE
from psycogreen._interface.members import Member
from psycogreen._interface.replacing import method
from psycogreen._wait import native
from psycogreen._wait.libpq import COPY_BOTH, libpq
from psycogreen._wait.native import SocketWait

# psycopg2's own methods, not a replacement nor a subclass's.
_execute = cursor.execute
_read = ReplicationCursor.read_message

_wal_end = Member(ReplicationCursor, "wal_end")

# The base type's descriptor: psycopg2 does not use a subclass's attribute.
_connection_of = vars(cursor)["connection"].__get__

_wait_socket: SocketWait


def configure(wait_socket: SocketWait) -> None:
    """Wait for messages with *wait_socket* from now on."""
    global _wait_socket
    _wait_socket = wait_socket


class _Time(ctypes.Structure):
    """A timeval."""

    _fields_ = (("seconds", ctypes.c_long), ("microseconds", ctypes.c_long))

    def set(self, seconds: float) -> None:
        fraction, self.seconds = math.modf(seconds)[0], int(seconds)
        self.microseconds = int(fraction * 1e6)

    def get(self) -> float:
        return float(self.seconds + self.microseconds / 1e6)


class _State(ctypes.Structure):
    """The needed fields that psycopg2's ReplicationCursor adds to a cursor.

    They are the same in all of psycopg2 2.9, and found by the offset of a member.
    """

    _fields_ = (
        ("consuming", ctypes.c_int, 1),
        ("decode", ctypes.c_int, 1),
        ("last_io", _Time),
        ("status_interval", _Time),
        ("lsns", ctypes.c_uint64 * 3),
        ("wal_end", ctypes.c_uint64),
        ("last_data_start", ctypes.c_uint64),
        ("last_feedback", _Time),
    )


def _state(self: ReplicationCursor) -> _State:
    return _State.from_address(id(self) + _wal_end.offset - _State.wal_end.offset)


@method(ReplicationCursor, "start_replication_expert")
def _start(
    refuse: Callable[..., None],
    self: ReplicationCursor,
    *args: Any,  # noqa: ANN401
    **kwargs: Any,  # noqa: ANN401
) -> None:
    def bind(
        command: object, decode: int = 0, status_interval: float = 10
    ) -> tuple[object, int, float]:
        return command, decode, status_interval

    conn = self.connection
    if self.closed or conn is None or conn.async_:
        # psycopg2 refuses a cursor without a connection, and does not wait on an
        # asynchronous connection.
        call_refused(partial(refuse, self, *args, **kwargs))
        return
    try:
        refuse(self, *args, **kwargs)
    except psycopg2.ProgrammingError:
        # It refused because of green mode, so the arguments are valid.
        command, decode, interval = bind(*args, **kwargs)
    if interval < 1:
        msg = "status_interval must be >= 1 (sec)"
        raise psycopg2.ProgrammingError(msg)
    _execute(self, command)  # type: ignore[arg-type]
    state = _state(self)
    state.status_interval.set(interval)
    state.decode = -bool(decode)
    state.last_io.set(time())


@method(ReplicationCursor, "read_message")
def _read_message(read: Callable[..., object], self: ReplicationCursor) -> object:
    _await_room(self)
    return call_refused(read, self)  # it never waits


@method(ReplicationCursor, "send_feedback")
def _send_feedback(
    send: Callable[..., None],
    self: ReplicationCursor,
    *args: Any,  # noqa: ANN401
    **kwargs: Any,  # noqa: ANN401
) -> None:
    # Positional arguments after the three positions, or by name: *reply* and *force*.
    if any(args[3:]) or kwargs.get("reply") or kwargs.get("force"):
        _await_room(self)
    send(self, *args, **kwargs)


def _await_room(self: ReplicationCursor) -> None:
    """Wait until libpq can send feedback, which it does at once or not at all.

    Each method of psycopg2 that reads may send feedback too. Where libpq would block,
    psycopg2 raises an error on a non-blocking connection.
    """
    conn = _connection_of(self)
    while not (conn is None or conn.closed or conn.async_ or _has_room(conn)):
        _wait_for(conn, write=True, timeout=None)


def _has_room(conn: connection) -> bool:
    """Return whether all is sent, and the socket has room. True if the session is lost."""
    # The server reads feedback also while it waits to send, so nothing is read here.
    if libpq().PQflush(conn.pgconn_ptr) > 0:
        return False
    fd = conn.fileno()
    return fd < 0 or native.is_writable(fd)


@method(ReplicationCursor, "consume_stream")
def _consume_stream(
    refuse: Callable[..., None],
    self: ReplicationCursor,
    *args: Any,  # noqa: ANN401
    **kwargs: Any,  # noqa: ANN401
) -> None:
    def bind(
        consume: Callable[[object], object], keepalive_interval: object = None
    ) -> tuple[Callable[[object], object], object]:
        return consume, keepalive_interval

    try:
        return refuse(self, *args, **kwargs)
    except psycopg2.ProgrammingError:
        if self.connection.async_:
            raise
        consume, interval = bind(*args, **kwargs)
    state = _state(self)
    _check(self, state, interval)
    if not callable(consume):  # psycopg2 itself fails with a SystemError
        msg = f"consume must be callable, not {consume!r}"
        raise TypeError(msg)
    if interval:
        state.status_interval.set(interval)
    state.consuming = -1
    try:
        _consume(self, state, consume)
    finally:
        state.consuming = 0


def _check(self: ReplicationCursor, state: _State, interval: Any) -> None:  # noqa: ANN401
    """Raise the errors that psycopg2 raises before it begins to consume."""
    msg = None
    if interval is not None and not isinstance(interval, int | float):
        msg = "keepalive_interval must be int or float"
    elif interval is not None and interval < 1:
        msg = "keepalive_interval must be >= 1 (sec)"
    elif state.consuming:
        msg = "consume_stream cannot be used when already in the consume loop"
    elif not _is_replicating(self):
        msg = "consume_stream: not replicating, call start_replication first"
    if msg:
        raise psycopg2.ProgrammingError(msg)


def _is_replicating(self: ReplicationCursor) -> bool:
    # The cursor's own result: to ask the connection would wait if it is in a query.
    result = self.pgresult_ptr
    return bool(result) and libpq().PQresultStatus(result) == COPY_BOTH


def _consume(
    self: ReplicationCursor, state: _State, consume: Callable[[object], object]
) -> None:
    """Call *consume* with each message, until it raises."""
    turn = monotonic() + SLICE
    while True:
        _await_room(self)
        message = call_refused(_read, self)
        if message is not None:
            consume(message)
            if monotonic() < turn:
                continue
            seconds = 0.0
        else:
            due = state.last_feedback.get() + state.status_interval.get()
            seconds = max(due - time(), 0.0)
        with suppress(WaitTimeout):
            _wait_for(self.connection, write=False, timeout=seconds)
        turn = monotonic() + SLICE


def _wait_for(conn: connection, *, write: bool, timeout: float | None) -> None:
    """Wait for the socket of *conn* as a `SocketWait` does."""
    # A duplicate can still be waited for if another greenlet closes the connection.
    fd = os.dup(conn.fileno())
    try:
        _wait_socket(fd, write=write, timeout=timeout)
    finally:
        os.close(fd)


REPLACEMENTS = (_start, _read_message, _send_feedback, _consume_stream)
