"""HTTP as bytes on a socket: what is sent and what comes back, unparsed."""

import contextlib
import re
import socket


def exchange(address, *parts, timeout=30):
    """Send the parts of a request, return everything that the server answers.

    Between two parts it waits for an answer. After the last one it sends
    nothing more, and says so: a server that would keep the connection closes it.
    """
    with socket.create_connection(address, timeout) as client:
        answer = b""
        for part in parts[:-1]:
            client.sendall(part)
            answer += client.recv(1 << 16)
        client.sendall(parts[-1])
        with contextlib.suppress(OSError):  # the server may have closed or reset it
            client.shutdown(socket.SHUT_WR)
        return answer + read_all(client)


def read_all(client):
    """Return what the server sends until it closes or, having sent it, resets."""
    answer = []
    with contextlib.suppress(ConnectionResetError):
        while data := client.recv(1 << 16):
            answer.append(data)
    return b"".join(answer)


def without_date(answer):
    """Return an answer without the header that differs from second to second."""
    return re.sub(rb"(?m)^Date: [^\r]*\r\n", b"", answer)
