"""Blocking calls, made in a native thread while greenlets wait for them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from psycogreen._wait import forks, native

if TYPE_CHECKING:
    from psycogreen._wait.native import SocketWait

T = TypeVar("T")

IDLE = 10.0
"""Seconds that a native thread stays for the next call."""


def in_thread(
    function: Callable[[], T], wait_socket: SocketWait, timeout: float | None = None
) -> T:
    """Return what *function* returns, or raise what it raises.

    Raise `WaitTimeout` if it takes longer than *timeout* seconds; ``None`` is no limit.
    The thread is left to itself then, and also when the waiting greenlet is interrupted.
    Raise `RuntimeError` if no thread can be started.
    """
    call = Call(function)
    start(call.run)
    return call.wait(wait_socket, timeout)


class Call(Generic[T]):
    """The call of a function, whose end any number of greenlets may wait for."""

    def __init__(self, function: Callable[[], T]) -> None:
        """Call *function* when `run` is called."""
        self._function = function
        self._error: BaseException | None = None
        self._is_done = False
        # A deque's methods are atomic: no lock is held here while a destructor or a
        # signal's handler runs that waits for the same call.
        self._writers: deque[int] = deque()

    def run(self) -> None:
        """Call the function and wake all that wait. Raise nothing."""
        try:
            self._value = self._function()
        except BaseException as ex:  # noqa: BLE001
            self._error = ex
        self._is_done = True
        while True:
            try:
                writer = self._writers.pop()
            except IndexError:
                return
            native.original("os", "write")(writer, b".")

    def wait(self, wait_socket: SocketWait, timeout: float | None = None) -> T:
        """Return what the function returns, or raise what it raises.

        Raise `WaitTimeout` if it takes longer than *timeout* seconds.
        """
        if not self._is_done:
            self._await(wait_socket, timeout)
        if self._error:
            raise self._error
        return self._value

    def _await(self, wait_socket: SocketWait, timeout: float | None) -> None:
        # The end is told through a pipe: that is what every loop can wait for, and
        # what a native thread can do without knowing the loop.
        reader, writer = os.pipe()
        try:
            self._writers.append(writer)
            if not self._is_done:  # otherwise run() may have seen no writer
                wait_socket(reader, write=False, timeout=timeout)
        finally:
            try:
                self._writers.remove(writer)
            except ValueError:
                # run() has taken it and is about to write, if it has not done so. On a
                # closed pipe that would be an error, and the signal SIGPIPE.
                native.wait_socket(reader, write=False, timeout=None)
            os.close(reader)
            os.close(writer)


class _Thread:
    """A native thread that makes one call after another."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._wake = native.original("_thread", "allocate_lock")()
        self._wake.acquire()

    def call(self, function: Callable[[], object]) -> None:
        """Call *function* in the thread, which must be one of the idle."""
        self._function = function
        self._wake.release()

    def run(self) -> None:
        while True:
            self._function()
            del self._function  # it may hold much
            _idle.append(self)
            if not self._wake.acquire(timeout=IDLE):
                try:
                    _idle.remove(self)
                except ValueError:
                    self._wake.acquire()  # call() has it, and is about to release it
                else:
                    return


_idle: deque[_Thread] = deque()
"""The threads that wait for a call. The last one waits for the shortest time."""


def start(function: Callable[[], object]) -> None:
    """Call *function*, which must not raise, in a native thread.

    The end of the process does not wait for it. Raise `RuntimeError` if no thread
    can be started.
    """
    try:
        thread = _idle.pop()
    except IndexError:
        native.start_thread(_Thread(function).run)
    else:
        thread.call(function)


@forks.after_in_child
def _after_fork() -> None:
    """Forget the threads, which are the parent's."""
    _idle.clear()
