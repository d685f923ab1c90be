"""Applications that answer how psycopg2 waits in their worker."""

import asyncio
import dataclasses
import json

import psycogreen


def _body():
    return json.dumps(dataclasses.asdict(psycogreen.status())).encode()


def app(environ, start_response):
    """Answer with the status, over WSGI."""
    start_response("200 OK", [("Content-Type", "application/json")])
    return [_body()]


async def asgi_app(scope, receive, send):
    """Answer with the status, over ASGI."""
    await asyncio.sleep(0)
    if scope["type"] != "http":
        return
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": _body()})
