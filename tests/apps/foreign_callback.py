"""A library that sets its own wait callback."""

from psycopg2.extensions import set_wait_callback
from psycopg2.extras import wait_select

set_wait_callback(wait_select)
