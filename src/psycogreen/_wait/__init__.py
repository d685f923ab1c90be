"""How a query waits: the wait callback, the epoll set, and the modules that both use.

Start with `callback`: the loop that drives ``connection.poll()``. An established
connection takes the fast path, an `epoll` set that the framework's hub watches. The
loop of the fast path is compiled (``_speedups.c``), with `pure` as its twin in Python;
`twin` selects one of them. `deadline` keeps ``connect_timeout``. `cancel` cancels a
query on the server when its wait was interrupted. `libpq` calls functions of the libpq
that psycopg2 uses. `offload` runs blocking calls in native threads, and `bell` wakes
the greenlets that wait for them. `native` has the operating system's threads and waits.
`forks` is the fork hook. `stats` counts. `unpatched` warns about a process in which
nothing is monkey-patched. `hub` is the interface to a framework. No module here imports
a framework or another room.
"""
