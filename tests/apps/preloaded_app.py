"""An application that opens connections where --preload imports it."""

import os

import psycopg2
from status_app import app

__all__ = ["app"]

shared = [psycopg2.connect(os.environ["DSN"]) for _ in range(2)]
closed = psycopg2.connect(os.environ["DSN"])
closed.close()
