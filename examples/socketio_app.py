"""Flask-SocketIO under gunicorn's gevent worker: each event's query waits on its own.

Run it, and ask it for a session::

    gunicorn -k gevent -c python:psycogreen.integrations.gunicorn_conf socketio_app:app
    curl 'http://127.0.0.1:8000/socket.io/?EIO=4&transport=polling'
"""

import os

import psycopg2
from flask import Flask
from flask_socketio import SocketIO

app = Flask(__name__)
socketio = SocketIO(app, async_mode="gevent")


@socketio.on("sleep")
def sleep(seconds: float) -> dict[str, float]:
    """Let PostgreSQL take its time; other events are handled meanwhile."""
    connection = psycopg2.connect(os.environ.get("DSN", ""))
    connection.cursor().execute("select pg_sleep(%s)", (seconds,))
    connection.close()
    return {"slept": seconds}
