"""The uWSGI tests' application, with a query where it is imported."""

from uwsgi_app import application, idle, query

__all__ = ["application"]

print("queried at import:", query("select 1")[0], flush=True)
idle.clear()  # or the workers would share the connection
