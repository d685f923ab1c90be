"""Blocking calls, made in a native thread while this greenlet waits."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from psycogreen._wait.native import original, start_thread

if TYPE_CHECKING:
    from psycogreen._wait.native import SocketWait

T = TypeVar("T")


def in_thread(
    function: Callable[[], T], wait_socket: SocketWait, timeout: float | None = None
) -> T:
    """Return what *function* returns, or raise what it raises.

    Raise `WaitTimeout` if it takes longer than *timeout* seconds. The thread is
    left to itself then, and also when the waiting greenlet is interrupted.
    """
    # The thread tells its end through a pipe: that is what every loop can wait
    # for, and what a native thread can do without knowing the loop.
    reader, writer = os.pipe()
    call = _Call(function, writer)
    try:
        try:
            start_thread(call.run)
        except BaseException:
            os.close(writer)
            raise
        wait_socket(reader, write=False, timeout=timeout)
    finally:
        os.close(reader)
    return call.result()


class _Call(Generic[T]):
    def __init__(self, function: Callable[[], T], writer: int) -> None:
        self._function = function
        self._writer = writer
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as ex:  # noqa: BLE001
            self._error = ex
        finally:
            # A byte, not just the end: a fork of this process may hold the pipe
            # open. Nobody may be there to read it any more.
            with contextlib.suppress(BrokenPipeError):
                original("os", "write")(self._writer, b".")
            os.close(self._writer)

    def result(self) -> T:
        if self._error:
            raise self._error
        return self._value
