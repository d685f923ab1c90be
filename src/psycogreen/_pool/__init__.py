"""A pool of psycopg2 connections, in parts.

``places`` is the queue: how many connections there may be, and which caller gets the
next one. ``sessions`` is one connection: whether it is alive, how it is reset, how it
ends. ``traces`` decides whether a statement changes its session. ``keeper`` opens,
replaces and closes connections in the background. `psycogreen.pool` is the public
module.

No module here depends on a framework. Locks, threads and sockets are the standard
library's, looked up when they are used: cooperative if a framework has monkey-patched
them, else native.
"""
