"""An application that imports psycopg2 with its first request."""


def app(environ, start_response):
    """Import psycopg2, and answer."""
    import psycopg2

    start_response("200 OK", [("Content-Type", "text/plain")])
    return [psycopg2.__version__.encode()]
