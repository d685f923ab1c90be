"""Show the application the connection parameters that it gave.

libpq receives addresses beside the host names, and reports them. So the attributes that
show them are replaced in psycopg2's types while it is patched.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from psycopg2.extensions import ConnectionInfo, connection, make_dsn, parse_dsn

from psycogreen._interface.hosts import LISTS
from psycogreen._interface.replacing import Replacement

if TYPE_CHECKING:
    from psycogreen._interface.hosts import Plan


# By identity, since a subclass may define equality.
_plans: dict[int, tuple[weakref.ref[connection], Plan]] = {}
"""The plans of the living connections whose host names psycogreen looked up."""


def note(conn: connection, plan: Plan) -> None:
    """Show the parameters of *plan* for *conn*, not those that libpq received."""
    number = id(conn)
    # A connection may outlive the names of this module. The reference, which the
    # callback is given, is what pop() would return.
    forget = functools.partial(_plans.pop, number)
    _plans[number] = weakref.ref(conn, forget), plan


def is_noted(conn: connection) -> bool:
    """Return whether psycogreen, not libpq, has looked up the host names of *conn*."""
    return _plan_of(conn) is not None


def _plan_of(conn: connection) -> Plan | None:
    reference, plan = _plans.get(id(conn), (None, None))
    return plan if reference and reference() is conn else None


def _dsn(original: Any) -> property:  # noqa: ANN401
    def dsn(conn: connection) -> str:
        shown: str = original.__get__(conn)
        plan = _plan_of(conn)
        if plan is None:
            return shown
        # psycopg2 may differ from the given string in other ways: it hides a password,
        # and a replication connection adds a parameter.
        parameters = _given(parse_dsn(shown), plan.given)
        is_given = parameters == parse_dsn(plan.dsn)
        return plan.dsn if is_given else str(make_dsn(**parameters))

    return property(dsn, doc=original.__doc__)


def _get_dsn_parameters(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def get_dsn_parameters(conn: connection) -> dict[str, str]:
        return _shown(conn, original(conn))

    return get_dsn_parameters


def _dsn_parameters(original: Any) -> property:  # noqa: ANN401
    def dsn_parameters(info: ConnectionInfo) -> dict[str, str]:
        return _shown(_connection_of(info), original.__get__(info))

    return property(dsn_parameters, doc=original.__doc__)


REPLACEMENTS = [
    Replacement(connection, "dsn", _dsn),
    Replacement(connection, "get_dsn_parameters", _get_dsn_parameters),
    Replacement(ConnectionInfo, "dsn_parameters", _dsn_parameters),
]


def _connection_of(info: ConnectionInfo) -> connection:
    # The connection is the only field of the object, after the object header.
    place = ctypes.py_object.from_address(id(info) + object.__basicsize__)
    return cast(connection, place.value)


def _shown(conn: connection, parameters: dict[str, str]) -> dict[str, str]:
    plan = _plan_of(conn)
    if plan is None:
        return parameters
    default = {"port": parameters["port"]} if "port" in parameters else {}
    return _given(parameters, {**default, **plan.inherited, **plan.given})


def _given(parameters: dict[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Return *parameters* with libpq's lists of hosts replaced by *given*."""
    rest = {word: value for word, value in parameters.items() if word not in LISTS}
    return {**rest, **given}
