"""A server of one's own on eventlet.wsgi, which patches psycopg2 itself.

DSN=dbname=postgres python eventlet_server.py
"""

import eventlet

eventlet.monkey_patch()

import psycogreen

psycogreen.patch_psycopg()

from eventlet import wsgi
from flask_app import app

sock = eventlet.listen(("127.0.0.1", 0))
print(f"Listening at: http://127.0.0.1:{sock.getsockname()[1]}", flush=True)
wsgi.server(sock, app)
