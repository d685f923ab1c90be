"""The backend: Django's own, with connections from a pool."""

from __future__ import annotations

import math
import os
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.base.base import NO_DB_ALIAS, BaseDatabaseWrapper
from django.db.backends.postgresql import base as postgresql
from django.db.backends.postgresql.psycopg_any import IsolationLevel

from psycogreen._pool.options import Options
from psycogreen.integrations.django import _registry
from psycogreen.integrations.django._registry import AliasPool, Borrowed
from psycogreen.integrations.django.creation import DatabaseCreation

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from psycogreen._pool.traces import WatchedConnection
    from psycogreen.integrations.django._registry import Settings

__all__ = ["DatabaseWrapper"]

_OPTIONS = tuple(field.name for field in fields(Options))


class DatabaseWrapper(postgresql.DatabaseWrapper):
    """Django's connection, which borrows a pooled one while it is open."""

    creation_class = DatabaseCreation

    settings_dict: Settings
    connection: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Start without a connection."""
        super().__init__(*args, **kwargs)
        self._borrowed: Borrowed | None = None
        self._lender: AliasPool | None = None

    @property
    def pool(self) -> AliasPool | None:
        """The pool of this alias, made on first use; ``None`` without the option."""
        options = self.settings_dict["OPTIONS"].get("pool")
        if not options or self.alias == NO_DB_ALIAS:
            return None
        pool = _registry.find(self.alias)
        if pool is None or not pool.is_for(self.settings_dict):
            pool = _registry.add(_make_pool(self.alias, self.settings_dict, options))
        return pool

    def close_pool(self) -> None:
        """Close the pool of this alias; the next connection makes a new one.

        Borrowed connections are closed when they are returned.
        """
        _registry.close(self.alias)

    @property
    def allow_thread_sharing(self) -> bool:
        """Whether other threads may use it. Read without the lock that Django takes."""
        return bool(self._thread_sharing_count > 0)

    def connect(self) -> None:
        """Connect. With a pool this happens in each request, so look it up once."""
        self._lender = self.pool
        try:
            super().connect()
        finally:
            self._lender = None

    def get_connection_params(self) -> Any:  # noqa: ANN401
        """Return the arguments for psycopg2, without the pool's options."""
        if self._lender:
            return dict(self._lender.arguments)
        settings = self.settings_dict
        self.settings_dict = _without_pool(settings)
        try:
            return super().get_connection_params()
        finally:
            self.settings_dict = settings

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:  # noqa: ANN401
        """Borrow a connection from the pool; open one if there is no pool."""
        self._end_loan()  # Django's atomic() may have dropped the connection
        pool = self._lender or self.pool
        if pool is None:
            return super().get_new_connection(conn_params)
        # Django's tests share a connection with other threads, which may end later.
        borrowed = pool.lend(to_this_thread=not self.allow_thread_sharing)
        self._borrowed = borrowed
        level = self.settings_dict["OPTIONS"].get("isolation_level")
        self.isolation_level = IsolationLevel(level or IsolationLevel.READ_COMMITTED)
        return borrowed.loan.conn

    def _set_autocommit(self, autocommit: bool) -> None:
        """Set it, unless it is on already, as it is when the pool lends a connection."""
        connection = self.connection
        if not (autocommit and connection.autocommit and not connection.closed):
            super()._set_autocommit(autocommit)

    def _end_loan(self) -> None:
        borrowed, self._borrowed = self._borrowed, None
        if borrowed:
            borrowed.give_back()

    def init_connection_state(self) -> None:
        """Initialise the session for Django, unless it is a pooled one, which is."""
        if self._borrowed:
            BaseDatabaseWrapper.init_connection_state(self)
        else:
            super().init_connection_state()

    def ensure_timezone(self) -> Any:  # noqa: ANN401
        """Set the time zone; close the pool, whose connections have the old one."""
        self.close_pool()
        return super().ensure_timezone()

    def close_if_health_check_failed(self) -> None:
        """Check the connection, unless it is a pooled one, which was checked."""
        if self.connection is not None and not self._borrowed:
            super().close_if_health_check_failed()

    def _close(self) -> None:
        """Return the connection to the pool; close it if it is not a pooled one."""
        connection = self.connection
        if connection is None:
            return
        with self.wrap_database_errors:
            if self._borrowed and self._borrowed.loan.conn is connection:
                self.connection = None
                self._end_loan()
            else:
                connection.close()


def _make_pool(alias: str, settings: Settings, options: Any) -> AliasPool:  # noqa: ANN401
    """Return a new pool, which opens no connection before it is used."""
    options = _checked(alias, settings, options)
    plain = _without_pool(settings)
    arguments = postgresql.DatabaseWrapper(plain, alias).get_connection_params()
    timeout = options.get("timeout", 30.0)
    try:
        return AliasPool(
            alias,
            settings,
            arguments,
            partial(_connect, alias, plain, arguments, timeout),
            configure=partial(_configure, alias, plain),
            connection_factory=settings["OPTIONS"].get("connection_factory"),
            **options,
        )
    except (TypeError, ValueError) as ex:
        msg = f"pool of database {alias!r}: {ex}"
        raise ImproperlyConfigured(msg) from ex


def _checked(alias: str, settings: Settings, options: Any) -> dict[str, Any]:  # noqa: ANN401
    if options is True:
        options = {}
    if not isinstance(options, dict):
        msg = (
            f"pool of database {alias!r}: {options!r} is neither True nor a dictionary"
        )
        raise ImproperlyConfigured(msg)
    if unknown := sorted(set(options) - set(_OPTIONS), key=str):
        names = ", ".join(map(repr, _OPTIONS))
        msg = f"pool of database {alias!r}: unknown option {unknown[0]!r}: there are {names}"
        raise ImproperlyConfigured(msg)
    if (age := settings.get("CONN_MAX_AGE", 0)) != 0:
        msg = (
            f"database {alias!r} has CONN_MAX_AGE={age!r} beside a pool, which keeps "
            "connections by itself: remove CONN_MAX_AGE (the pool has max_lifetime)"
        )
        raise ImproperlyConfigured(msg)
    return options


def _without_pool(settings: Settings) -> Settings:
    given = settings["OPTIONS"]
    options = {name: value for name, value in given.items() if name != "pool"}
    return {**settings, "OPTIONS": options}


def _connect(
    alias: str,
    settings: Settings,
    arguments: dict[str, Any],
    timeout: float,
    *,
    connection_factory: type[WatchedConnection],
) -> Any:  # noqa: ANN401
    """Open a connection as Django does, with *timeout* as default limit in seconds.

    *arguments* are those for psycopg2.
    """
    opener = postgresql.DatabaseWrapper(settings, alias)
    params = {**arguments, "connection_factory": connection_factory}
    if "PGCONNECT_TIMEOUT" not in os.environ and "service" not in params:
        params.setdefault("connect_timeout", math.ceil(timeout))
    return opener.get_new_connection(params)


def _configure(alias: str, settings: Settings, conn: connection) -> None:
    """Initialise a new session for Django."""
    opener = postgresql.DatabaseWrapper(settings, alias)
    opener.connection = conn
    opener.set_autocommit(True)
    opener.init_connection_state()
