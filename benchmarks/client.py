"""An HTTP client with many concurrent connections, run as a separate process.

Usage: client.py HOST PORT TARGET CLIENTS SECONDS

Each of the clients connects and requests the target repeatedly for SECONDS; only once if
SECONDS is 0. The result is printed as a line of JSON.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import sys
import time

Latencies = list[float]


async def visit(host: str, port: str, target: str, until: float) -> Latencies:
    """Run one client; return the seconds that each answer took."""
    reader, writer = await asyncio.open_connection(host, int(port))
    message = f"GET {target} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
    latencies = []
    while not latencies or time.perf_counter() < until:
        start = time.perf_counter()
        writer.write(message)
        await answer(reader)
        latencies.append(time.perf_counter() - start)
    writer.close()
    return latencies


async def answer(reader: asyncio.StreamReader) -> None:
    """Read an answer; raise `RuntimeError` unless its status is 200."""
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        msg = f"the server answered {head!r}"
        raise RuntimeError(msg)
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)[1]
    await reader.readexactly(int(length))


async def main() -> None:
    """Run all clients, and return the result."""
    host, port, target, clients, seconds = sys.argv[1:]
    start = time.perf_counter()
    until = start + float(seconds)
    visits = [visit(host, port, target, until) for _ in range(int(clients))]
    latencies = sorted(itertools.chain(*await asyncio.gather(*visits)))
    wall = time.perf_counter() - start
    p99 = latencies[int(len(latencies) * 0.99)]
    print(json.dumps({"requests": len(latencies), "wall": wall, "p99": p99}))


if __name__ == "__main__":
    asyncio.run(main())
