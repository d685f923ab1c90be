"""A consumer of logical replication, beside the other greenlets of a server.

Each change of the database is seen by the server a moment later: here it is listed, in an
application it may empty a cache or be sent on to browsers. Run it with a PostgreSQL whose
``wal_level`` is ``logical``, change any table, and ask::

    python replication_server.py
    curl http://127.0.0.1:8000/

The environment variable DSN says where the database is, in libpq's words. Without it
libpq's own environment does (PGHOST, PGDATABASE and so on).
"""

from gevent import monkey

monkey.patch_all()

import psycogreen

psycogreen.patch_psycopg()

import os
from collections import deque
from uuid import uuid4

import gevent
import psycopg2
from flask import Flask
from gevent.pywsgi import WSGIServer
from psycopg2.extras import LogicalReplicationConnection, ReplicationMessage

app = Flask(__name__)
changes: deque[str] = deque(maxlen=1000)


@app.get("/")
def show() -> str:
    """List the last changes."""
    return "".join(f"{change}\n" for change in changes)


def note(message: ReplicationMessage) -> None:
    """Note a change, and tell the server that it need not keep it any longer."""
    changes.append(message.payload)
    message.cursor.send_feedback(flush_lsn=message.data_start)


def consume() -> None:
    """Note all changes from now on; other greenlets run between them."""
    connection = psycopg2.connect(
        os.environ.get("DSN", ""), connection_factory=LogicalReplicationConnection
    )
    cursor = connection.cursor()
    # A temporary slot ends with the connection. One that is kept has all changes that
    # were made meanwhile; until then the server must keep them, too.
    slot = f"example_{uuid4().hex}"
    cursor.execute(f"CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL test_decoding")
    cursor.start_replication(slot_name=slot, decode=True)
    print("Consuming", flush=True)
    cursor.consume_stream(note)


consumer = gevent.spawn(consume)
server = WSGIServer(("127.0.0.1", int(os.environ.get("PORT", "8000"))), app)
server.start()
print(f"Listening at: http://127.0.0.1:{server.server_port}", flush=True)
consumer.get()  # the server ends with it
