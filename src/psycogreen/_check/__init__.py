"""The check command: find out whether psycopg2 blocks in a process, and why.

Start with `checking`, which reaches the verdict; `command` is ``python -m psycogreen``.
`measuring` times real queries beside a `ticker`, in the tasks of a framework (`tasks`).
`findings` derives causes and remedies from the figures. `launching` starts a server's
command with `startup` on its path, so that `probe` runs the check in the server's worker.
`report` and `overview` print; `postgres` starts a throw-away server. No query that an
application makes goes through this room.
"""
