"""Test databases: no connection may be open while one is copied or dropped."""

from __future__ import annotations

from typing import Any

from django.db.backends.postgresql.creation import DatabaseCreation as Creation


class DatabaseCreation(Creation):
    """Closes the pool first, as Django's own backend does since 5.1."""

    def _clone_test_db(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        self.connection.close()
        self.connection.close_pool()
        super()._clone_test_db(*args, **kwargs)

    def _destroy_test_db(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        self.connection.close_pool()
        super()._destroy_test_db(*args, **kwargs)
