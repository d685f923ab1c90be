"""Read and write members of C types in memory.

psycopg2 has read-only members, such as ``cursor.rowcount``. A member's descriptor has
its C type and its offset in the object's structure, whatever the layout in this version
of psycopg2 is.
"""

from __future__ import annotations

import ctypes
from typing import Any

_POINTER = ctypes.sizeof(ctypes.c_void_p)

# The offset of d_member in a PyMemberDescrObject: after d_type, d_name and d_qualname.
_DEFINITION = object.__basicsize__ + 3 * _POINTER

# Py_T_STRING: `Member.get` returns, and `Member.set` takes, the address of the text.
_STRING = 5

# Py_T_OBJECT, and Py_T_OBJECT_EX, which is never NULL to Python.
_OBJECTS = (6, 16)

# The numbers of Include/structmember.h.
_C_TYPES: dict[int, Any] = {
    0: ctypes.c_short,
    1: ctypes.c_int,
    2: ctypes.c_long,
    _STRING: ctypes.c_void_p,
    **dict.fromkeys(_OBJECTS, ctypes.c_void_p),
    8: ctypes.c_byte,
    9: ctypes.c_ubyte,
    10: ctypes.c_ushort,
    11: ctypes.c_uint,
    12: ctypes.c_ulong,
    14: ctypes.c_bool,
    17: ctypes.c_longlong,
    18: ctypes.c_ulonglong,
    19: ctypes.c_ssize_t,
}


class _Definition(ctypes.Structure):
    """A PyMemberDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("type", ctypes.c_int),
        ("offset", ctypes.c_ssize_t),
    )


class Member:
    """A member of a C type, which may be read-only to Python."""

    def __init__(self, cls: type, name: str) -> None:
        """Find the member *name* that *cls* itself defines.

        Raise `TypeError` if it is not a member, or one of a type not known here.
        """
        descriptor = vars(cls)[name]
        if type(descriptor).__name__ != "member_descriptor":
            msg = f"{name!r} of {cls!r} is not a member of its structure"
            raise TypeError(msg)
        place = ctypes.c_void_p.from_address(id(descriptor) + _DEFINITION)
        definition = _Definition.from_address(place.value or 0)
        if definition.type not in _C_TYPES:
            msg = f"member {name!r} of {cls!r} has the unknown type {definition.type}"
            raise TypeError(msg)
        self._cls = cls
        self._name = name
        self._is_object = definition.type in _OBJECTS
        self._c_type = _C_TYPES[definition.type]
        self.offset = definition.offset
        """Its offset in the structure, in bytes."""

    def get(self, instance: object) -> Any:  # noqa: ANN401
        """Return the value in *instance*; for a text, its address or ``None``."""
        value = self._place(instance).value
        if not self._is_object or value is None:
            return value
        return ctypes.cast(value, ctypes.py_object).value

    def set(self, instance: object, value: Any) -> None:  # noqa: ANN401
        """Write *value* into *instance*; for a text, its address or ``None``.

        The text must live as long as *instance* refers to it.
        """
        place = self._place(instance)
        if not self._is_object:
            place.value = value
            return
        # The structure owns a reference. Set the new one before the old one is released:
        # that may run a destructor, which may read the member.
        before = place.value
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
        place.value = id(value)
        if before:
            ctypes.pythonapi.Py_DecRef(ctypes.c_void_p(before))

    def _place(self, instance: object) -> Any:  # noqa: ANN401
        if not isinstance(instance, self._cls):
            msg = f"{instance!r} has no member {self._name!r} of {self._cls!r}"
            raise TypeError(msg)
        return self._c_type.from_address(id(instance) + self.offset)


def first_object(instance: object) -> Any:  # noqa: ANN401
    """Return the object that the first pointer of *instance*'s structure refers to.

    For C types whose first field is known, but is not a member. Return ``None`` if the
    pointer is NULL.
    """
    address = _first_pointer(instance).value
    return ctypes.cast(address, ctypes.py_object).value if address else None


def clear_first_object(instance: object) -> None:
    """Set the pointer of `first_object` to NULL, and release its reference."""
    place = _first_pointer(instance)
    before, place.value = place.value, None
    if before:
        ctypes.pythonapi.Py_DecRef(ctypes.c_void_p(before))


def _first_pointer(instance: object) -> ctypes.c_void_p:
    return ctypes.c_void_p.from_address(id(instance) + object.__basicsize__)
