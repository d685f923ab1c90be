"""The parts of psycopg2's interface that need more than a wait callback.

`connecting` resolves host names off the loop and keeps ``connect_timeout``. It uses
`hosts`, which reads the hosts from a connection string and the environment; `lookups`,
which shares concurrent lookups of one name; `hosts_file`, which tells which names need
no name server; `restart`, which restarts a connection attempt with other hosts; and
`readback`, which shows the application the parameters that it gave. `blocking` is the
context manager in which psycopg2 blocks. `dsn` reads connection strings and hides their
passwords. `copying` transfers the data of COPY during psycopg2's own query, with `rows`
(in C: ``_rows.c``) for the rows that the server sends. `largeobjects` reads and writes
large objects by `functions` of the server, and calls psycopg2's other methods of them
in native threads. `polling` waits where a function polls in place of psycopg2.
`replication` waits for replication messages. `replacing` replaces methods and
attributes of psycopg2's C types, and `members` reads and writes their read-only
members. `sharing` makes the methods that use a connection take `turns` (in C:
``_turns.c``), and `failures` completes their errors. `sending` prepares a connection
for large statements. `cancelling` is ``connection.cancel()``. This room uses
`psycogreen._wait`, never the reverse.
"""
