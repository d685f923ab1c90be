"""How a query waits: the callback, the epoll set, and what both need.

Start with `callback`: the loop that drives ``connection.poll()``. For a connected
socket it takes the short way, an `epoll` set that the framework's hub watches; the
loop of that way is compiled (``_speedups.c``), with `pure` as its twin in Python, and
`twin` chooses between the two. `deadline` keeps ``connect_timeout``, `cancel` ends a
query on the server when its wait was interrupted, `libpq` calls what psycopg2 does not
offer, `offload` runs blocking calls in native threads, `native` holds the operating
system's own threads and waits, `forks` runs what a forked child has to forget, and
`stats` counts. `hub` tells what is needed of a framework. Nothing here imports a
framework or another room.
"""
