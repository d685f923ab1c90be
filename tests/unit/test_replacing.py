"""Replacing methods and attributes of psycopg2's C types, and accessing members."""

import io

import psycopg2
import pytest
from psycopg2.extensions import connection, cursor, set_wait_callback
from psycopg2.extras import DictCursor, wait_select

from psycogreen._interface import replacing
from psycogreen._interface.members import Member
from psycogreen._interface.replacing import Replacement, method

# Py_TPFLAGS_IMMUTABLETYPE. Other flags change with what Python caches of a type.
IMMUTABLE = 1 << 8


class OwnCursor(cursor):
    """A subclass that exists before anything is replaced."""


@pytest.fixture
def install():
    """Replace attributes for a test, with a wait callback installed."""
    set_wait_callback(wait_select)
    yield replacing.install
    replacing.remove()
    set_wait_callback(None)


@pytest.fixture
def conn(dsn):
    """An open connection."""
    conn = psycopg2.connect(dsn)
    yield conn
    conn.close()


def answer(cls, name, value):
    """Return a replacement that returns *value*, and what it was called with."""

    @method(cls, name)
    def replaced(original, self, *args, **kwargs):
        return value, args, kwargs

    return replaced


@pytest.mark.parametrize("cls", [cursor, DictCursor, OwnCursor])
def test_replaced_for_existing_objects_and_subclasses(install, conn, cls):
    """An existing cursor of any class gets the replaced method."""
    cur = conn.cursor(cursor_factory=cls)
    install([answer(cursor, "mogrify", 1)])
    assert cur.mogrify("select", args=(2,)) == (1, ("select",), {"args": (2,)})


def test_put_back_exactly(install):
    """remove() restores the same objects under the same names."""
    before = {cls: dict(vars(cls)) for cls in (cursor, connection)}
    flags = cursor.__flags__ & IMMUTABLE
    install([answer(cursor, "mogrify", 1), answer(connection, "cancel", 1)])
    assert cursor.__flags__ & IMMUTABLE == flags
    replacing.remove()
    assert before == {cls: dict(vars(cls)) for cls in (cursor, connection)}
    assert cursor.__flags__ & IMMUTABLE == flags
    with pytest.raises(TypeError):
        cursor.mogrify = None


def test_slots_follow(install, conn):
    """A slot in C is replaced with its method, and restored."""
    cur = conn.cursor(cursor_factory=OwnCursor)
    cur.execute("select 1")

    @method(cursor, "__next__")
    def doubled(original, self):
        return original(self) * 2

    install([doubled])
    assert list(cur) == [(1, 1)]
    replacing.remove()
    cur.execute("select 1")
    assert list(cur) == [(1,)]


def test_original_while_psycopg2_blocks(install, conn):
    """Without a wait callback, psycopg2's own method runs."""
    install([answer(cursor, "mogrify", 1)])
    set_wait_callback(None)
    assert conn.cursor().mogrify("select %s", (2,)) == b"select 2"


def test_the_last_one_comes_first(install, conn):
    """Of two replacements of a method, the later one calls the earlier one."""
    calls = []

    def note(name):
        @method(cursor, "mogrify")
        def replaced(original, self, *args):
            calls.append(name)
            return original(self, *args)

        return replaced

    install([note("earlier"), note("later")])
    assert conn.cursor().mogrify("select 1") == b"select 1"
    assert calls == ["later", "earlier"]


def test_attribute(install, conn):
    """An attribute can be replaced by another descriptor."""

    def make(original):
        return property(lambda self: ("replaced", original.__get__(self)))

    install([Replacement(cursor, "rowcount", make)])
    assert conn.cursor().rowcount == ("replaced", -1)


def test_name_and_documentation_stay(install):
    """A replaced method has the name and docstring of psycopg2's."""
    before = cursor.mogrify.__doc__
    install([answer(cursor, "mogrify", 1)])
    assert cursor.mogrify.__doc__ == before
    assert cursor.mogrify.__name__ == "mogrify"


def test_install_twice(install, conn):
    """Installing replacements again does nothing."""
    install([answer(cursor, "mogrify", 1)])
    install([answer(cursor, "mogrify", 2)])
    assert conn.cursor().mogrify()[0] == 1


def test_members(conn):
    """Read-only members can be read and written."""
    cur = conn.cursor()
    rowcount = Member(cursor, "rowcount")
    assert rowcount.get(cur) == -1
    rowcount.set(cur, 3)
    assert cur.rowcount == 3
    status = Member(cursor, "statusmessage")
    assert status.get(cur) is cur.statusmessage
    for message in ("COPY 3", "COPY 4"):
        status.set(cur, message)
        assert cur.statusmessage == message


def test_text_member_is_an_address(conn):
    """A member that is a text in C is read and written as its address."""
    name = Member(cursor, "name")
    assert name.get(conn.cursor()) is None
    cur = conn.cursor("named")
    address = name.get(cur)
    name.set(cur, None)
    assert cur.name is None
    name.set(cur, address)
    assert cur.name == "named"


def test_member_of_another_object():
    """A member cannot be accessed in an object of another type."""
    with pytest.raises(TypeError, match="has no member 'rowcount'"):
        Member(cursor, "rowcount").get(io.StringIO())


def test_not_a_member():
    """A computed attribute is not a member."""
    with pytest.raises(TypeError, match=r"'closed' of .* is not a member"):
        Member(cursor, "closed")
