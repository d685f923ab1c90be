"""Django's PostgreSQL backend on psycopg2, with a connection pool for green workers.

In the settings::

    DATABASES = {
        "default": {
            "ENGINE": "psycogreen.integrations.django",
            "NAME": "app",
            "OPTIONS": {"pool": {"max_size": 20}},
        }
    }

The option has the names, meanings and defaults of Django's own for psycopg 3:
``True``, or a dictionary with ``min_size``, ``max_size``, ``timeout``,
``max_lifetime``, ``max_idle`` and ``max_waiting``. Without it the backend is Django's.

The backend always uses psycopg2, also if psycopg 3 is installed, which Django prefers.
For that, this module must be imported before Django chooses. If
``django.contrib.postgres`` is an installed application, which Django imports before any
backend, import this module in the settings. Raise
`django.core.exceptions.ImproperlyConfigured` if Django has already chosen psycopg 3.
"""

from psycogreen.integrations.django._driver import choose_psycopg2
from psycogreen.integrations.django._registry import pool_status

__all__ = ["pool_status"]

choose_psycopg2()
