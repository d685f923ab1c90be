"""The parts of psycopg2's interface that need more than a wait callback.

`connecting` resolves host names off the loop and keeps ``connect_timeout``;
`blocking` is the context manager in which psycopg2 blocks; `dsn` reads connection
strings and hides their passwords. This room uses `psycogreen._wait`, never the reverse.
"""
