"""A server on gevent.pywsgi that patches psycopg2 itself.

Run it, and ask it::

    python gevent_server.py
    curl http://127.0.0.1:8000/sleep/1
"""

from gevent import monkey

monkey.patch_all()

import psycogreen

psycogreen.patch_psycopg()

import os

from flask_app import app
from gevent.pywsgi import WSGIServer

server = WSGIServer(("127.0.0.1", int(os.environ.get("PORT", "8000"))), app)
server.start()
print(f"Listening at: http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
