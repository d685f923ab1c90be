"""Makes two HTTP/2 requests at once, and prints what the answers were.

python http2_client.py PORT
"""

import json
import socket
import ssl
import sys
from collections import defaultdict

from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded


def get(connection, path):
    """Request a path; return the number of the stream."""
    stream = connection.get_next_available_stream_id()
    headers = {
        ":method": "GET",
        ":path": path,
        ":scheme": "https",
        ":authority": "localhost",
    }
    connection.send_headers(stream, list(headers.items()), end_stream=True)
    return stream


def answers(sock, connection, streams):
    """Return the answers: status and body."""
    status, body = {}, defaultdict(bytes)
    while streams:
        sock.sendall(connection.data_to_send())
        for event in connection.receive_data(sock.recv(1 << 16)):
            if isinstance(event, ResponseReceived):
                status[event.stream_id] = dict(event.headers)[b":status"].decode()
            elif isinstance(event, DataReceived):
                body[event.stream_id] += event.data
                length = event.flow_controlled_length
                connection.acknowledge_received_data(length, event.stream_id)
            elif isinstance(event, StreamEnded):
                streams.discard(event.stream_id)
    return {each: (status[each], body[each]) for each in status}


def main(port):
    """Make the requests and print what came back."""
    context = ssl._create_unverified_context()
    context.set_alpn_protocols(["h2"])
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port))) as sock:
        assert sock.selected_alpn_protocol() == "h2"
        connection = H2Connection()
        connection.initiate_connection()
        streams = {get(connection, "/hello"), get(connection, "/big/1000000")}
        found = answers(sock, connection, streams)
    (small, hello), (large, big) = found[1], found[3]
    print(
        json.dumps(
            {
                1: {"status": small, "body": hello.decode()},
                3: {"status": large, "length": len(big)},
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
