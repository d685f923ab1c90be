"""Many HTTP requests at once, each timed."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """A request as its client saw it."""

    start: float
    """Seconds since the first of its batch was due."""
    end: float
    body: str
    error: str | None

    @property
    def duration(self) -> float:
        """Seconds from start to end."""
        return self.end - self.start


def request(
    url: str, *, method: str = "GET", timeout: float = 60, origin: float | None = None
) -> Request:
    """Make one request; its *error* has the exception if it fails."""
    start = time.monotonic()
    origin = start if origin is None else origin
    body, error = "", None
    try:
        message = urllib.request.Request(url, method=method)
        with urllib.request.urlopen(message, timeout=timeout) as response:
            body = response.read().decode()
    except urllib.error.HTTPError as ex:
        ex.close()
        error = str(ex)
    except OSError as ex:
        error = str(ex)
    return Request(start - origin, time.monotonic() - origin, body, error)


def requests(
    count: int,
    url: str,
    *,
    method: str = "GET",
    timeout: float = 60,
    done: Callable[[], object] = lambda: None,
) -> list[Request]:
    """Make *count* requests at once; call *done* as each is answered."""
    return request_all([url] * count, method=method, timeout=timeout, done=done)


def request_all(
    urls: Sequence[str],
    at_once: int | None = None,
    *,
    method: str = "GET",
    timeout: float = 60,
    done: Callable[[], object] = lambda: None,
) -> list[Request]:
    """Request each of *urls*, *at_once* at a time (``None``: all of them)."""
    origin = time.monotonic()

    def one(url: str) -> Request:
        result = request(url, method=method, timeout=timeout, origin=origin)
        done()
        return result

    with ThreadPoolExecutor(at_once or len(urls)) as pool:
        return list(pool.map(one, urls))
