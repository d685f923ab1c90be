"""A gunicorn worker that runs on eventlet and makes psycopg2 cooperative.

    gunicorn -k psycogreen.integrations.eventlet_worker.EventletWorker app:app

It needs gunicorn 23 or newer, and no configuration file. gunicorn itself has no eventlet
worker since version 26.
"""

from __future__ import annotations

import os
import signal
import ssl
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

from psycogreen._requirements import require

try:
    require("eventlet")
except ImportError as ex:
    # For an ImportError gunicorn would print the traceback, not only the remedy.
    if "gunicorn.arbiter" in sys.modules:
        msg = f"psycogreen: {ex}"
        raise SystemExit(msg) from ex
    raise

import eventlet
from eventlet import getcurrent, hubs, patcher
from eventlet.support.greenlets import GreenletExit
from eventlet.wsgi import WSGI_LOCAL
from gunicorn.sock import ssl_context
from gunicorn.workers.base_async import AsyncWorker

from psycogreen.integrations._eventlet_green import monkey_patch
from psycogreen.integrations._eventlet_socket import (
    accept,
    encrypt,
    green_listener,
    is_readable,
)
from psycogreen.integrations._gunicorn import prepare_worker

if TYPE_CHECKING:
    from eventlet.greenio import GreenSocket
    from eventlet.greenthread import GreenThread

    from psycogreen.integrations._eventlet_socket import Client

__all__ = ["EventletWorker"]

# Seconds between two heartbeats: half of gunicorn's shortest --timeout.
_HEARTBEAT = 0.5


class EventletWorker(AsyncWorker):
    """A worker that serves each client in a greenthread.

    It monkey-patches its own process, never gunicorn's master. It installs eventlet's
    wait callback, only once if ``psycogreen.integrations.gunicorn_conf`` is used too.
    Raise `psycogreen.PatchConflict` on start if another callback is installed.

    ``worker_connections`` limits the concurrent clients, over all bound sockets
    together. Further clients wait in the kernel, where another worker may accept them.
    """

    sockets: list[GreenSocket]

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Initialise the worker with gunicorn's arguments; runs in the master."""
        super().__init__(*args, **kwargs)
        self._slots = eventlet.Semaphore(self.worker_connections)
        self._serving: set[GreenThread] = set()
        self._idle: dict[GreenThread, Client] = {}
        """The greenthreads whose client has sent nothing since its last request."""
        self._asked_for: deque[Callable[[], None]] = deque()
        self._tls: ssl.SSLContext | None = None

    def init_process(self) -> None:
        """Make the process green, then run the worker as gunicorn does."""
        # Block signals: before gunicorn's handlers are installed they would be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, self.SIGNALS)
        late = self.cfg.preload_app and not patcher.is_monkey_patched("thread")
        prepare_worker(self, "eventlet", late=late)
        monkey_patch(preloaded=late)
        self.sockets = [green_listener(bound) for bound in self.sockets]
        super().init_process()

    def init_signals(self) -> None:
        """Install gunicorn's signal handlers, and unblock pending signals."""
        super().init_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.SIGNALS)

    def run(self) -> None:
        """Serve until a signal stops the worker or the arbiter ends; finish requests."""
        if self.cfg.is_ssl:
            self._tls = ssl_context(self.cfg)
        acceptors = [eventlet.spawn(self._accept, each) for each in self.sockets]
        while self.alive and not self._orphaned():
            self._wait_for_signal(_HEARTBEAT)
        for acceptor in acceptors:
            acceptor.kill()
        for each in self.sockets:
            each.close()
        self._finish()

    def _orphaned(self) -> bool:
        if self.ppid == os.getppid():
            return False
        self.log.info("Parent changed, shutting down: %s", self)
        return True

    def _wait_for_signal(self, seconds: float) -> None:
        """Let other greenthreads run for *seconds*, or until a signal; handle it."""
        self.notify()
        # Python writes to this pipe at each signal. The read is cooperative.
        with eventlet.Timeout(seconds, False):
            os.read(self.PIPE[0], 4096)
        while self._asked_for:
            self._asked_for.popleft()()

    def _finish(self) -> None:
        """Wait for running requests, as long as gunicorn allows, and kill the rest."""
        self._wait_for_clients(self.cfg.graceful_timeout)
        if self._serving:
            self.log.warning("Worker graceful timeout (pid:%s)", self.pid)
            for greenthread in list(self._serving):
                greenthread.kill()
            self._wait_for_clients(1.0)  # for a rollback, for example

    def _wait_for_clients(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._serving and time.monotonic() < deadline:
            self._dismiss_idle()
            self._wait_for_signal(0.1)

    def _dismiss_idle(self) -> None:
        """Close the idle keep-alive connections."""
        for greenthread, client in list(self._idle.items()):
            if not is_readable(client):
                greenthread.kill()

    def _accept(self, listener: GreenSocket) -> None:
        """Serve the clients of *listener*, each in a greenthread, until killed."""
        while True:
            # Accept one client at a time, and take a slot only when a client is there,
            # so that other workers can accept between two clients.
            hubs.trampoline(listener, read=True)
            self._slots.acquire()
            try:
                client, address = accept(listener)
            except OSError as ex:
                self._slots.release()
                self._not_accepted(ex)
            else:
                self._serve(listener, client, address)

    def _not_accepted(self, ex: OSError) -> None:
        # Another worker was faster, or the client has left already.
        if isinstance(ex, BlockingIOError | ConnectionAbortedError):
            return
        self.log.error("psycogreen: cannot accept a client: %s", ex)
        eventlet.sleep(1.0)  # it may be temporary, such as too many open files

    def _serve(self, listener: GreenSocket, client: Client, address: object) -> None:
        greenthread = eventlet.spawn(self.handle, listener, client, address)
        self._serving.add(greenthread)
        greenthread.link(self._served)

    def _served(self, greenthread: GreenThread) -> None:
        self._serving.discard(greenthread)
        self._idle.pop(greenthread, None)
        self._slots.release()

    def handle(self, listener: GreenSocket, client: Client, addr: object) -> None:
        """Serve *client* until one of the two sides closes."""
        client.setblocking(True)  # ignore socket.setdefaulttimeout()
        if self._tls:
            # The limit for the handshake is gunicorn's limit for a request.
            limit = self.cfg.keepalive or None
            try:
                client = encrypt(
                    client, self._tls, limit, self.cfg.suppress_ragged_eofs
                )
            except OSError as ex:
                self.log.debug("TLS handshake with %s failed: %s", addr, ex)
                return
        client.recv = partial(self._receive, client.recv)
        try:
            super().handle(listener, client, addr)
        finally:
            del client.recv  # a cyclic reference to the client

    def _receive(self, recv: Callable[..., bytes], *args: int) -> bytes:
        received = recv(*args)
        self._idle.pop(getcurrent(), None)
        return received

    def handle_request(
        self, listener_name: object, req: object, sock: Client, addr: object
    ) -> object:
        """Answer a request; the connection is idle afterwards."""
        self._idle.pop(getcurrent(), None)  # a pipelined request is not idle
        result = super().handle_request(listener_name, req, sock, addr)
        self._idle[getcurrent()] = sock
        return result

    def timeout_ctx(self) -> eventlet.Timeout:
        """Return the timeout for the wait for a request, which ends it silently."""
        return eventlet.Timeout(self.cfg.keepalive or None, False)

    def is_already_handled(self, respiter: object) -> bool:
        """Return whether the application itself has answered on the socket.

        Raise `StopIteration`, which ends the connection, if `eventlet.websocket` did.
        """
        if getattr(WSGI_LOCAL, "already_handled", False):
            raise StopIteration
        return bool(super().is_already_handled(respiter))

    def handle_error(
        self, req: object, client: object, addr: object, exc: BaseException
    ) -> None:
        """Answer with an error page, unless the greenthread was killed."""
        if not isinstance(exc, GreenletExit):
            super().handle_error(req, client, addr, exc)

    # A signal handler runs in any greenthread or in the hub, where it must not wait.
    # So it only queues the work for run().

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """Let run() quit immediately."""
        self._asked_for.append(partial(super().handle_quit, sig, frame))

    def handle_usr1(self, sig: int, frame: FrameType | None) -> None:
        """Let run() reopen the log files."""
        self._asked_for.append(partial(super().handle_usr1, sig, frame))
