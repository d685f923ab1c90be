"""Run blocking calls in native threads, while greenlets wait for their results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from psycogreen._wait import forks, native
from psycogreen._wait.bell import bell, ring

if TYPE_CHECKING:
    from psycogreen._wait.native import SocketWait

T = TypeVar("T")

IDLE = 10.0
"""Seconds that an idle native thread waits for the next call before it ends."""


def in_thread(
    function: Callable[[], T], wait_socket: SocketWait, timeout: float | None = None
) -> T:
    """Call *function* in a native thread; return its result or raise its exception.

    Raise `WaitTimeout` if it takes longer than *timeout* seconds; ``None`` is no limit.
    In that case, or if the waiting greenlet is interrupted, the call goes on in its
    thread and its result is dropped. Raise `RuntimeError` if no thread can be started.
    """
    return Call(function).wait(wait_socket, timeout, begin=start)


Start = Callable[[Callable[[], None]], object]
"""A function that lets another thread or greenlet call a function."""


class Call(Generic[T]):
    """A call of a function; any number of greenlets may wait for its end.

    Its exception refers to the frames that it goes through. So none of them may keep a
    reference to the call: otherwise all that they refer to, such as connections, would
    live until the garbage collector runs.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        """Call *function* when `run` is called."""
        self._function = function
        self._error: BaseException | None = None
        self.is_done = False
        self.has_begun = False
        # A deque's methods are atomic, so no lock is needed: a destructor or a signal
        # handler that waits for the same call could deadlock with it.
        self._writers: deque[int] = deque()

    def run(self) -> None:
        """Call the function and wake all waiting greenlets. Never raises."""
        try:
            self._value = self._function()
        except BaseException as ex:  # noqa: BLE001
            self._error = ex
        self._wake_all()
        del self  # see the class

    def _wake_all(self) -> None:
        self.is_done = True
        while True:
            try:
                writer = self._writers.pop()
            except IndexError:
                return
            ring(writer)

    def wait(
        self,
        wait_socket: SocketWait,
        timeout: float | None = None,
        *,
        begin: Start | None = None,
    ) -> T:
        """Return the function's result, or raise its exception.

        Raise `WaitTimeout` if it takes longer than *timeout* seconds. *begin* is called
        with `run` when all is prepared. It comes last because from then on the other
        thread and this one compete for the GIL.
        """
        try:
            if not self.is_done:
                self._await(wait_socket, timeout, begin)
            if self._error is not None:
                raise self._error
            return self._value
        finally:
            del self  # see the class

    def _await(
        self,
        wait_socket: SocketWait,
        timeout: float | None,
        begin: Start | None,
    ) -> None:
        with bell() as (reader, writer):
            has_rung = False
            self._writers.append(writer)
            try:
                if begin:
                    begin(self.run)
                    self.has_begun = True
                if not self.is_done:  # otherwise run() may have missed this writer
                    wait_socket(reader, write=False, timeout=timeout)
                    has_rung = True
            finally:
                try:
                    self._writers.remove(writer)
                except ValueError:
                    # run() has removed it and may not have written yet. Writing to a
                    # closed pipe would be an error and raise SIGPIPE.
                    if not has_rung:
                        native.wait_socket(reader, write=False, timeout=None)


class _Thread:
    """A native thread that makes one call after another."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._wake = native.original("_thread", "allocate_lock")()
        self._wake.acquire()

    def call(self, function: Callable[[], object]) -> None:
        """Call *function* in the thread, which must be idle."""
        self._function = function
        self._wake.release()

    def run(self) -> None:
        while True:
            self._function()
            del self._function  # it may hold large objects
            _idle.append(self)
            if not self._wake.acquire(timeout=IDLE):
                try:
                    _idle.remove(self)
                except ValueError:
                    self._wake.acquire()  # call() was faster and will release the lock
                else:
                    return


_idle: deque[_Thread] = deque()
"""The idle threads; the last one has been idle for the shortest time."""


def start(function: Callable[[], object]) -> None:
    """Call *function*, which must not raise, in a native daemon thread.

    Raise `RuntimeError` if no thread can be started.
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
