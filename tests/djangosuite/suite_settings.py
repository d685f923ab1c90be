"""Settings for Django's own tests: ENGINE and POOL say what they run with."""

import json
import os

from psycopg2.extensions import parse_dsn

_dsn = parse_dsn(os.environ["DSN"])


def _database(name):
    pool = json.loads(os.environ["POOL"])
    return {
        "ENGINE": os.environ["ENGINE"],
        "HOST": _dsn["host"],
        "PORT": _dsn["port"],
        "USER": _dsn["user"],
        "NAME": name,
        "OPTIONS": {"pool": pool} if pool else {},
    }


DATABASES = {"default": _database("django"), "other": _database("other")}
SECRET_KEY = "for these tests only"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
TEST_RUNNER = "suite_runner.Runner"
