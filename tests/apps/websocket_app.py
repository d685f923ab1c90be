"""An application that talks through eventlet's WebSockets."""

from eventlet.websocket import WebSocketWSGI


@WebSocketWSGI
def app(websocket):
    """Repeat what is said, until nothing is."""
    while said := websocket.wait():
        websocket.send(said.upper())
