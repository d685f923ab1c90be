"""The parts of psycopg2's interface that need more than a wait callback.

`connecting` resolves host names off the loop and keeps ``connect_timeout``: `hosts` is
what it knows of a connection string and the environment, `lookups` shares the lookup of
a name, `restart` begins a connection attempt again with other hosts, and `readback`
shows the application what it gave. `blocking` is the context manager in which psycopg2
blocks; `dsn` reads connection strings and hides their passwords. `copying` carries
the data of COPY inside psycopg2's own query, with `rows` (in C: ``_rows.c``) for the
rows that the server sends; `largeobjects` calls psycopg2's own large objects in native
threads, and `replication` waits for a replication's messages. `replacing` replaces
methods and attributes of psycopg2's C types, `members` reads and writes what they offer
to read only, and `libpq` calls the libpq that psycopg2 uses. `sharing` lets the methods
that use a connection take `turns` (in C: ``_turns.c``), `failures` completes what they
raise, and `cancelling` is ``connection.cancel()``. This room uses `psycogreen._wait`, never the reverse.
"""
