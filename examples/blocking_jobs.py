"""Regular blocking code: one job waits for PostgreSQL, the other for a web server.

Nothing in it knows of greenlets. gevent_example.py and eventlet_example.py run
both jobs at once.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import psycopg2

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
logger = logging.getLogger(__name__)


def query(times: int, seconds: float) -> None:
    """Run queries that take some seconds each, one after the other."""
    connection = psycopg2.connect(os.environ.get("DSN", ""))
    cursor = connection.cursor()
    for n in range(times):
        logger.info("query %d start", n)
        cursor.execute("select pg_sleep(%s)", (seconds,))
        logger.info("query %d end", n)
    connection.close()


def download(times: int, seconds: float, url: str) -> None:
    """Download pages that take some seconds each, one after the other."""
    for n in range(times):
        logger.info("download %d start", n)
        with urlopen(f"{url}/{seconds}") as response:
            response.read()
        logger.info("download %d end", n)


@contextmanager
def slow_server() -> Iterator[str]:
    """Run the web server in a process of its own; tell its URL."""
    program = Path(__file__).with_name("slow_server.py")
    command = [sys.executable, str(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
