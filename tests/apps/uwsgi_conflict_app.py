"""An application that has set a wait callback itself."""

from psycopg2.extensions import set_wait_callback
from psycopg2.extras import wait_select
from uwsgi_app import application

__all__ = ["application"]

set_wait_callback(wait_select)
