"""Which names the system takes from its hosts file."""

import os

import pytest

from psycogreen._interface import hosts_file

HOSTS = """\
# The names of this machine
127.0.0.1\tlocalhost
10.0.0.1  db.example DB2.example  # the database
::1 ip6
fe80::1%lo local
010.0.0.1 old
10.0.0.1 d\u00e9.example
broken db3.example
10.0.0.2
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Use files of our own; return a function that writes them."""
    hosts_file._names.cache_clear()
    places = {"_HOSTS": tmp_path / "hosts", "_SERVICES": tmp_path / "nsswitch.conf"}
    for name, path in places.items():
        monkeypatch.setattr(hosts_file, name, str(path))

    def write(hosts=HOSTS, services="hosts: files dns\n"):
        places["_HOSTS"].write_text(hosts)
        places["_SERVICES"].write_text(services)

    yield write
    hosts_file._names.cache_clear()


def test_names(files):
    """All names of a line with an address count, whatever their case."""
    files()
    for name in ("localhost", "db.example", "db2.EXAMPLE", "ip6"):
        assert hosts_file.has(name), name
    for name in ("the", "10.0.0.1", "example", "db.example.", ""):
        assert not hosts_file.has(name), name


@pytest.mark.parametrize("name", ["local", "old", "d\u00e9.example", "db3.example"])
def test_unusual_names(files, name):
    """The system ignores a line whose address has a scope, leading zeros, or is none.

    It looks for the encoded form of a name that is not ASCII.
    """
    files()
    assert not hosts_file.has(name)


@pytest.mark.parametrize(
    "services",
    [
        "hosts: files dns",
        "passwd: files\nhosts:\tfiles\nnetworks: dns",
        "hosts:files myhostname resolve [!UNAVAIL=return] dns",
        "#hosts: dns\n hosts: files mdns4_minimal [NOTFOUND=return] dns",
    ],
)
def test_first_place(files, services):
    """The hosts file is the first place in which the system looks."""
    files(services=services)
    assert hosts_file.has("db.example")


@pytest.mark.parametrize(
    "services",
    [
        "",
        "passwd: files",
        "hosts:",
        "hosts:\nfiles",
        "hosts: dns files",
        "hosts: filesystem",
        "hosts: resolve [!UNAVAIL=return] files dns",
        "hosts: files [SUCCESS=merge] dns",
        "hosts: files dns\nhosts: dns",
        "# hosts: files dns",
    ],
)
def test_not_first_place(files, services):
    """The system may ask a name server first or as well."""
    files(services=services)
    assert not hosts_file.has("db.example")


def test_changes(files, tmp_path):
    """A file that has changed or was replaced is read again."""
    files()
    assert hosts_file.has("db.example")
    files(hosts="10.0.0.1 db9.example\n")
    assert not hosts_file.has("db.example")
    assert hosts_file.has("db9.example")
    files(hosts="10.0.0.1 db9.example\n", services="hosts: dns\n")
    assert not hosts_file.has("db9.example")
    files()
    # The same size and time, as after a restored backup.
    before = os.stat(hosts_file._HOSTS)
    assert hosts_file.has("db.example")
    other = tmp_path / "other"
    other.write_text(HOSTS.replace("db.example", "dc.example"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(hosts_file._HOSTS)
    assert not hosts_file.has("db.example")
    assert hosts_file.has("dc.example")


def test_unusual_files(files, tmp_path):
    """Without the files, or with a large one, all names are looked up off the loop."""
    assert not hosts_file.has("localhost")
    files(hosts=HOSTS + "#" * 40_000)
    assert not hosts_file.has("localhost")
    files(hosts=HOSTS + "10.0.0.3 d\udcff\x00\n".encode(errors="replace").decode())
    assert hosts_file.has("localhost")
    os.unlink(hosts_file._SERVICES)
    assert not hosts_file.has("localhost")
    files()
    os.unlink(hosts_file._HOSTS)
    (tmp_path / "hosts").mkdir()
    assert not hosts_file.has("localhost")
