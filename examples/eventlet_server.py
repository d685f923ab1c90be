"""A server on eventlet.wsgi that patches psycopg2 itself.

Run it, and ask it::

    python eventlet_server.py
    curl http://127.0.0.1:8000/sleep/1
"""

import eventlet

eventlet.monkey_patch()

import psycogreen

psycogreen.patch_psycopg()

import os

from eventlet import wsgi
from flask_app import app

sock = eventlet.listen(("127.0.0.1", int(os.environ.get("PORT", "8000"))))
print(f"Listening at: http://127.0.0.1:{sock.getsockname()[1]}", flush=True)
wsgi.server(sock, app)
