"""The check command: find out whether psycopg2 blocks in this process, and why.

Start with `checking`, which reaches the verdict; `command` is ``python -m psycogreen``.
`measuring` times real queries beside a `ticker`, in the tasks of a framework (`tasks`).
`report` and `overview` print; `postgres` starts a throw-away server. No query that an
application makes goes through this room.
"""
