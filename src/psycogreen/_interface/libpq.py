"""Functions, which do not wait, of the libpq that psycopg2 is linked with."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

# ConnStatusType
CONNECTION_BAD = 1

# ExecStatusType
TUPLES_OK = 2
COPY_OUT = 3
COPY_IN = 4
COPY_BOTH = 8

_PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "PQconsumeInput": (ctypes.c_int, (ctypes.c_void_p,)),
    "PQflush": (ctypes.c_int, (ctypes.c_void_p,)),
    "PQgetCopyData": (
        ctypes.c_int,
        (ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_int),
    ),
    "PQputCopyData": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int)),
    "PQputCopyEnd": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p)),
    "PQfreemem": (None, (ctypes.c_void_p,)),
    "PQsendQueryParams": (
        ctypes.c_int,
        (
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.POINTER(ctypes.c_char_p),
            ctypes.POINTER(ctypes.c_int),
            ctypes.POINTER(ctypes.c_int),
            ctypes.c_int,
        ),
    ),
    "PQisBusy": (ctypes.c_int, (ctypes.c_void_p,)),
    "PQstatus": (ctypes.c_int, (ctypes.c_void_p,)),
    "PQerrorMessage": (ctypes.c_char_p, (ctypes.c_void_p,)),
    "PQgetvalue": (ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_int, ctypes.c_int)),
    "PQgetlength": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_int, ctypes.c_int)),
    "PQgetResult": (ctypes.c_void_p, (ctypes.c_void_p,)),
    "PQresultStatus": (ctypes.c_int, (ctypes.c_void_p,)),
    "PQclear": (None, (ctypes.c_void_p,)),
    "PQisnonblocking": (ctypes.c_int, (ctypes.c_void_p,)),
    "PQsetnonblocking": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_int)),
}


def path() -> str:
    """Return the path of psycopg2's extension module.

    The dynamic linker also finds the symbols of the libraries that it depends on,
    whether they are the system's or bundled in a wheel.
    """
    from psycopg2 import _psycopg

    return str(_psycopg.__file__)


@functools.cache
def library() -> Any:  # noqa: ANN401
    """Return libpq, with the functions of *_PROTOTYPES*.

    They keep the GIL: none of them waits for the network on a non-blocking connection,
    and releasing it at each call is slow in a process with busy threads.
    """
    library = ctypes.PyDLL(path())
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library
