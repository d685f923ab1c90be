"""A pool of psycopg2 connections, in parts.

``places`` is the queue: how many connections there may be, and who gets one next.
``sessions`` is one connection: whether it is alive, how it becomes as new, how it
ends. ``traces`` tells what a statement leaves behind. ``keeper`` opens, replaces and
closes connections in the background. `psycogreen.pool` is the whole.

Nothing here knows a framework. Locks, threads and sockets are the standard
library's, looked up when they are used: cooperative where a framework has
monkey-patched them, native elsewhere.
"""
