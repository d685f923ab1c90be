"""What a library does that sets a wait callback of its own."""

from psycopg2.extensions import set_wait_callback
from psycopg2.extras import wait_select

set_wait_callback(wait_select)
