"""Methods and attributes of psycopg2's C types, replaced while it waits cooperatively.

They are replaced in the type itself, so that existing objects and all subclasses get
them too. Several modules may replace the same attribute: each receives the one that it
replaces, and is called first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from psycopg2.extensions import get_wait_callback

from psycogreen._interface.members import Member

# Py_TPFLAGS_IMMUTABLETYPE, a flag of every static type that is defined in C.
_IMMUTABLE = 1 << 8

_flags = Member(type, "__flags__")


@dataclass(frozen=True)
class Replacement:
    """A replacement of an attribute of a C type."""

    cls: type
    """The type that has the attribute in its own dictionary."""

    name: str

    make: Callable[[Any], Any]
    """Receives the attribute and returns its replacement: a function or another
    descriptor. While there is no wait callback, the replacement must do what the
    original does, see `method`."""


def method(cls: type, name: str) -> Callable[[Callable[..., Any]], Replacement]:
    """Make a `Replacement` of the method *name* of *cls* from a function.

    The function is called with the original method, the object, and the arguments.
    While psycopg2 blocks, the original method is called instead. If the method has a
    slot in C, such as ``__next__`` or ``__init__``, the slot is replaced too.
    """

    def decorate(function: Callable[..., Any]) -> Replacement:
        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(original)
            def replaced(self: object, /, *args: object, **kwargs: object) -> object:
                if get_wait_callback() is None:
                    return original(self, *args, **kwargs)
                return function(original, self, *args, **kwargs)

            return replaced

        return Replacement(cls, name, make)

    return decorate


_replaced: list[tuple[type, str, object]] = []
"""The replacements and their originals, in the order of installation."""


def install(replacements: Iterable[Replacement]) -> None:
    """Replace attributes, in that order. Does nothing the second time."""
    if _replaced:
        return
    for each in replacements:
        original = vars(each.cls)[each.name]
        _set(each.cls, each.name, each.make(original))
        _replaced.append((each.cls, each.name, original))


def remove() -> None:
    """Restore all attributes that `install` has replaced."""
    while _replaced:
        _set(*_replaced.pop())


def _set(cls: type, name: str, value: object) -> None:
    """Set an attribute of *cls*, also if that is a type defined in C.

    It sets the attribute in the usual way, with the flag that forbids it cleared. So
    Python updates the caches and the slots of the type and its subclasses.
    """
    with _mutable(cls):
        type.__setattr__(cls, name, value)


@contextmanager
def _mutable(cls: type) -> Iterator[None]:
    was = _flags.get(cls) & _IMMUTABLE
    _flags.set(cls, _flags.get(cls) & ~_IMMUTABLE)
    try:
        yield
    finally:
        _flags.set(cls, _flags.get(cls) | was)
