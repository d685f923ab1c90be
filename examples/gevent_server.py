"""A server of one's own on gevent.pywsgi, which patches psycopg2 itself.

DSN=dbname=postgres python gevent_server.py
"""

from gevent import monkey

monkey.patch_all()

import psycogreen

psycogreen.patch_psycopg()

from flask_app import app
from gevent.pywsgi import WSGIServer

server = WSGIServer(("127.0.0.1", 0), app)
server.start()
print(f"Listening at: http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
