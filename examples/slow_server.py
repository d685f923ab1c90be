"""An HTTP server that takes its time: GET /0.5 is answered after half a second.

It prints its URL and serves until it is terminated.
"""

import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class SlowHandler(BaseHTTPRequestHandler):
    """Answers late."""

    def do_GET(self) -> None:
        """Wait as many seconds as the path says, then answer."""
        time.sleep(float(self.path.strip("/")))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"done\n")

    def log_message(self, *args: object) -> None:
        """Log nothing."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), SlowHandler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
