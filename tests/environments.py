"""Environments of their own for other versions of gunicorn, kept in .cache/."""

import sys

import cache

EVENTLET_WORKER = "psycogreen.integrations.eventlet_worker.EventletWorker"

# What each needs besides: the oldest eventlet goes with the oldest gunicorn.
VERSIONS = {"23": ["eventlet==0.36.1"], "25": [], "26": [], "27": []}

_ALSO = ["eventlet", "flask", "h2", "psycopg2-binary", "sqlalchemy"]


def python_with_gunicorn(version):
    """Return a Python that has that major version of gunicorn, and psycogreen.

    With ``None`` it is the one that runs the tests.
    """
    if version is None:
        return sys.executable
    requirements = [f"gunicorn[gevent]=={version}.*", *VERSIONS[version], *_ALSO]
    folder = cache.environment(f"gunicorn-{version}", sys.executable, requirements)
    return str(folder / "bin" / "python")
