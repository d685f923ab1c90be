"""Connect by a name whose lookup takes long, in one of the ways. A process of a benchmark.

Usage: slow_name.py WAY GREENLETS SECONDS

The environment variable DSN names the database, by its address. A line of JSON tells for
how long the loop stands still while one greenlet connects, and how often the name is
looked up while all greenlets connect at once.
"""

from __future__ import annotations

import _socket
import json
import os
import sys
import time
from typing import Any

from psycopg2.extensions import make_dsn
from stalls import longest_stall
from ways import WAYS

NAME = "db.example"


def slow_down(seconds: float) -> list[str]:
    """Let a lookup stop its thread for *seconds*; return the list of what is looked up."""
    looked_up: list[str] = []
    find, stop = _socket.getaddrinfo, time.sleep

    def find_slowly(host: str, *arguments: Any) -> Any:  # noqa: ANN401
        looked_up.append(host)
        stop(seconds)
        return find("127.0.0.1", *arguments)

    _socket.getaddrinfo = find_slowly
    return looked_up


def main() -> None:
    """Measure both."""
    way, greenlets, seconds = sys.argv[1:]
    looked_up = slow_down(float(seconds))
    connect, run_all = WAYS[way].begin()
    dsn = make_dsn(os.environ["DSN"], host=NAME)

    def work() -> None:
        connect(dsn).close()

    stall = longest_stall(run_all, work)
    assert looked_up == [NAME]
    looked_up.clear()
    run_all([work] * int(greenlets))
    print(json.dumps({"longest stall": stall, "lookups": len(looked_up)}))


if __name__ == "__main__":
    main()
