"""Methods and attributes of psycopg2's C types, replaced while it waits cooperatively.

They are replaced in the type itself, so that objects that exist already and all
subclasses have them too. Several modules may replace the same one: each is given
what was there before it, and comes before it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from psycopg2.extensions import get_wait_callback

from psycogreen._interface.members import Member

# Py_TPFLAGS_IMMUTABLETYPE, which every type has that is defined in C.
_IMMUTABLE = 1 << 8

_flags = Member(type, "__flags__")


@dataclass(frozen=True)
class Replacement:
    """What is to stand for an attribute of a C type."""

    cls: type
    """The type that has the attribute in its own dictionary."""

    name: str

    make: Callable[[Any], Any]
    """Returns what stands for the attribute that it is given: a function or another
    descriptor. It has to do what the given one does while there is no wait callback,
    see `method`."""


def method(cls: type, name: str) -> Callable[[Callable[..., Any]], Replacement]:
    """Make a `Replacement` of the method *name* of *cls* from a function.

    The function is called with the method that was there, the object, and the
    arguments. While psycopg2 blocks, that method is called in its place. A method with a
    slot in C, such as ``__next__`` or ``__init__``, is replaced there too.
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
"""What has been replaced, and what was there before, in the order of installation."""


def install(replacements: Iterable[Replacement]) -> None:
    """Replace attributes, in that order; does nothing if some are replaced already."""
    if _replaced:
        return
    for each in replacements:
        original = vars(each.cls)[each.name]
        _set(each.cls, each.name, each.make(original))
        _replaced.append((each.cls, each.name, original))


def remove() -> None:
    """Put everything back that `install` has replaced."""
    while _replaced:
        _set(*_replaced.pop())


def _set(cls: type, name: str, value: object) -> None:
    """Set an attribute of *cls*, also if that is a type defined in C.

    The caches of the type and its subclasses are kept right, and so are their slots:
    it is the usual way of setting an attribute, but for the flag that forbids it.
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
