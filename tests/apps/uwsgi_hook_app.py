"""An application with a post-fork function of its own."""

from uwsgi_app import application
from uwsgidecorators import postfork

__all__ = ["application"]


@postfork
def my_own():
    """Say that it was called."""
    print("my own post-fork function", flush=True)
