"""Functions of the libpq that psycopg2 is linked with, which psycopg2 does not offer.

ctypes releases the GIL during each call. psycopg2's own methods, such as
`connection.cancel()`, do not always do that.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psycopg2.extensions import connection

CONNECTION_BAD = 1
"""The result of ``PQstatus()`` when connecting has failed."""


@functools.cache
def libpq() -> Any:  # noqa: ANN401
    """Return the functions of libpq.

    The dynamic linker also finds the symbols of the libraries that psycopg2's extension
    module depends on, whether they are the system's or bundled in a wheel.
    """
    import ctypes

    from psycopg2 import _psycopg

    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    functions = {
        "PQgetCancel": (pointer, pointer),
        "PQcancel": (number, pointer, text, number),
        "PQfreeCancel": (None, pointer),
        "PQconnectStart": (pointer, text),
        "PQfinish": (None, pointer),
        "PQstatus": (number, pointer),
        "PQerrorMessage": (text, pointer),
        "PQhostaddr": (text, pointer),
        "PQsetNoticeProcessor": (pointer, pointer, pointer, pointer),
        "PQsetnonblocking": (number, pointer, number),
        "PQisnonblocking": (number, pointer),
        "PQtransactionStatus": (number, pointer),
    }
    library = ctypes.CDLL(_psycopg.__file__)
    for name, (result, *arguments) in functions.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


def pgconn(conn: connection) -> int:
    """Return the memory address of the ``PGconn`` of *conn*, which must be open."""
    name = b"psycopg2.connection.native_connection"
    capsule = conn.get_native_connection()  # type: ignore[no-untyped-call]
    address: int = _get_pointer()(capsule, name)
    return address


def host_address(conn: connection) -> str:
    """Return the IP address that *conn* is connected to, or tries."""
    return str(libpq().PQhostaddr(pgconn(conn)).decode())


@functools.cache
def _get_pointer() -> Any:  # noqa: ANN401
    import ctypes

    # Not an attribute of ctypes.pythonapi: other code may set its types.
    prototype = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    return prototype(("PyCapsule_GetPointer", ctypes.pythonapi))
