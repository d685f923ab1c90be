"""Functions of the libpq that psycopg2 is linked with, which psycopg2 does not offer."""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING, Any

import psycopg2

if TYPE_CHECKING:
    from psycopg2.extensions import connection

# ConnStatusType
CONNECTION_BAD = 1

# ExecStatusType
TUPLES_OK = 2
COPY_OUT = 3
COPY_IN = 4
COPY_BOTH = 8

_VOID = None
_INT = ctypes.c_int
_INTS = ctypes.POINTER(_INT)
_TEXT = ctypes.c_char_p
_TEXTS = ctypes.POINTER(_TEXT)
_POINTER = ctypes.c_void_p
_POINTERS = ctypes.POINTER(_POINTER)


class _Option(ctypes.Structure):
    """A ``PQconninfoOption``."""

    _fields_ = (
        *(("keyword", _TEXT), ("envvar", _TEXT), ("compiled", _TEXT), ("val", _TEXT)),
        *(("label", _TEXT), ("dispchar", _TEXT), ("dispsize", _INT)),
    )


_OPTIONS = ctypes.POINTER(_Option)

# The type of the result, then those of the arguments.
_PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "PQcancel": (_INT, _POINTER, _TEXT, _INT),
    "PQclear": (_VOID, _POINTER),
    "PQconninfo": (_OPTIONS, _POINTER),
    "PQconninfoFree": (_VOID, _OPTIONS),
    "PQconnectStart": (_POINTER, _TEXT),
    "PQconsumeInput": (_INT, _POINTER),
    "PQerrorMessage": (_TEXT, _POINTER),
    "PQfinish": (_VOID, _POINTER),
    "PQflush": (_INT, _POINTER),
    "PQfreeCancel": (_VOID, _POINTER),
    "PQfreemem": (_VOID, _POINTER),
    "PQgetCancel": (_POINTER, _POINTER),
    "PQgetCopyData": (_INT, _POINTER, _POINTERS, _INT),
    "PQgetResult": (_POINTER, _POINTER),
    "PQgetlength": (_INT, _POINTER, _INT, _INT),
    "PQgetvalue": (_POINTER, _POINTER, _INT, _INT),
    "PQhostaddr": (_TEXT, _POINTER),
    "PQisBusy": (_INT, _POINTER),
    "PQisnonblocking": (_INT, _POINTER),
    "PQputCopyData": (_INT, _POINTER, _TEXT, _INT),
    "PQputCopyEnd": (_INT, _POINTER, _TEXT),
    "PQresultStatus": (_INT, _POINTER),
    "PQsendQueryParams": (
        *(_INT, _POINTER, _TEXT, _INT, _POINTER, _TEXTS, _INTS, _INTS, _INT),
    ),
    "PQsetNoticeProcessor": (_POINTER, _POINTER, _POINTER, _POINTER),
    "PQsetnonblocking": (_INT, _POINTER, _INT),
    "PQstatus": (_INT, _POINTER),
}


@functools.cache
def libpq() -> Any:  # noqa: ANN401
    """Return libpq's functions, which keep the GIL during each call.

    Use it for functions that do not wait: to release the GIL at each call is slow in a
    process with busy threads.
    """
    return _with_prototypes(ctypes.PyDLL(_path()))


@functools.cache
def waiting_libpq() -> Any:  # noqa: ANN401
    """Return libpq's functions, which release the GIL during each call.

    Use it for functions that may wait for the network or for a resolver. psycopg2's own
    methods, such as `connection.cancel()`, do not always release the GIL.
    """
    return _with_prototypes(ctypes.CDLL(_path()))


def _path() -> str:
    """Return the path of psycopg2's extension module.

    The dynamic linker also finds the symbols of the libraries that it depends on,
    whether they are the system's or bundled in a wheel.
    """
    from psycopg2 import _psycopg

    return str(_psycopg.__file__)


def _with_prototypes(library: Any) -> Any:  # noqa: ANN401
    for name, (result, *arguments) in _PROTOTYPES.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


def pgconn(conn: connection) -> int:
    """Return the memory address of the ``PGconn`` of *conn*.

    Raise `psycopg2.InterfaceError` if *conn* is closed.
    """
    address: int | None = None if conn.closed else conn.pgconn_ptr
    if address is None:
        msg = "connection already closed"
        raise psycopg2.InterfaceError(msg)
    return address


def parameters(conn: connection) -> dict[str, str]:
    """Return the parameters of *conn*, its password included, wherever they come from.

    The options that only say where libpq has looked for others are left out. What is not
    UTF-8 is decoded with surrogates.
    """
    options = libpq().PQconninfo(pgconn(conn))
    try:
        found = {}
        for option in options:
            if option.keyword is None:
                break
            if option.val is not None:
                value = option.val.decode(errors="surrogateescape")
                found[option.keyword.decode()] = value
    finally:
        libpq().PQconninfoFree(options)
    return {word: found[word] for word in found.keys() - {"service", "servicefile"}}


def host_address(conn: connection) -> str:
    """Return the IP address that *conn* is connected to, or tries."""
    return str(libpq().PQhostaddr(pgconn(conn)).decode())
