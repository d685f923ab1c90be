"""Make Django choose psycopg2, not psycopg 3."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from django.core.exceptions import ImproperlyConfigured

_DJANGO = "django.db.backends.postgresql"


def choose_psycopg2() -> None:
    """Make Django's PostgreSQL backend use psycopg2, also if psycopg 3 is installed.

    Django chooses once for the whole process, when the backend's modules are imported:
    psycopg 3 if that can be imported. Does nothing if Django has chosen psycopg2. Raise
    `ImproperlyConfigured` if Django has chosen psycopg 3.
    """
    with _hidden("psycopg"):
        chosen = import_module(f"{_DJANGO}.psycopg_any")
        if not chosen.is_psycopg3:
            import_module(f"{_DJANGO}.base")
    if chosen.is_psycopg3:
        msg = (
            "psycogreen.integrations.django needs psycopg2, and Django has chosen "
            "psycopg 3, which is installed beside it and was imported first (by "
            "django.contrib.postgres, or by a backend of Django's own): put 'import "
            "psycogreen.integrations.django' into the settings, or uninstall psycopg"
        )
        raise ImproperlyConfigured(msg)


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Make imports of the module *name* fail in a ``with`` block."""
    missing = object()
    before = sys.modules.get(name, missing)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is missing:
            del sys.modules[name]
        else:
            sys.modules[name] = before  # type: ignore[assignment]
