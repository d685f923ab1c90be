"""The minimal settings. DSN, or libpq's environment, names the database."""

import os

from psycopg2.extensions import parse_dsn

SECRET_KEY = "for this example only"
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "project.urls"
WSGI_APPLICATION = "project.wsgi.application"
INSTALLED_APPS: list[str] = []
MIDDLEWARE: list[str] = []
USE_TZ = True

_dsn = parse_dsn(os.environ.get("DSN", ""))
DATABASES = {
    "default": {
        "ENGINE": "psycogreen.integrations.django",
        "HOST": _dsn.get("host", ""),
        "PORT": _dsn.get("port", ""),
        "NAME": _dsn.get("dbname") or os.environ.get("PGDATABASE", "postgres"),
        "USER": _dsn.get("user", ""),
        "PASSWORD": _dsn.get("password", ""),
        # A request borrows a connection, and waits for one if all are in use.
        "OPTIONS": {"pool": {"max_size": int(os.environ.get("POOL_SIZE", "20"))}},
    }
}
