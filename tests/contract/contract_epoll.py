"""The hazards of keeping sockets in an epoll set."""

import _socket
import gc
import os
import time
import weakref
from contextlib import suppress
from types import SimpleNamespace

import psycopg2
import pytest
from greenlet import GreenletExit
from hub_tools import await_
from psycopg2.extensions import POLL_READ, parse_dsn

import psycogreen
from psycogreen._wait import epoll, native, pure
from psycogreen._wait.hub import HubGone
from psycogreen._wait.twin import CHECK_INTERVAL

native_sleep = native.original("time", "sleep")
get_ident = native.original("_thread", "get_ident")


@pytest.fixture
def settled(green, connect):
    """Return how often the hub has looked into the set during some idle time."""
    probe = connect()
    probe.cursor().execute("select 1")

    epoll_set = epoll.entries[probe.fileno()].epoll_set

    def settled(seconds=0.3):
        before = epoll_set._collected
        green.sleep(seconds)
        return epoll_set._collected - before

    return settled


def query(conn, what="1"):
    """Return what a query returns."""
    cursor = conn.cursor()
    cursor.execute(f"select {what}")
    return cursor.fetchone()[0]


def test_in_the_set(green, conn):
    """A connection is in the epoll set after its first query, and stays there."""
    assert query(conn) == 1
    entry = epoll.entries[conn.fileno()]
    assert entry.conn() is conn
    assert query(conn) == 1
    assert epoll.entries[conn.fileno()] is entry
    assert entry.waiter is None
    assert entry.epoll_set.waiting == 0


def test_set_that_is_closed_while_a_wait_prepares(green, connect):
    """A wait whose set a destructor closes, as it makes another, finds the hub gone."""
    conn = connect()
    hub = SimpleNamespace(
        greenlet=green.hub_greenlet(),
        plain=type(None),
        switch=None,
        releases_late=False,
        watch=lambda *arguments: None,
        unwatch=lambda: None,
    )
    epoll_set = epoll.EpollSet(hub)
    entry = epoll_set.entry(conn)
    real = epoll_set._epoll

    def register(fd, events):
        epoll_set.close()
        real.register(fd, events)

    epoll_set._epoll = SimpleNamespace(register=register, close=real.close)
    with pytest.raises(HubGone):
        epoll_set.change(entry, POLL_READ)
    assert entry.state == epoll.NOWHERE
    assert query(conn) == 1


def test_server_speaks_to_an_idle_connection(green, connect, settled):
    """A notification for an idle connection does not make the loop spin."""
    listener, sender = connect(), connect()
    for conn in listener, sender:
        conn.autocommit = True
    listener.cursor().execute("listen idle_news")
    query(listener)
    sender.cursor().execute("notify idle_news, 'extra'")
    assert settled() < 5
    assert query(listener) == 1
    assert listener.notifies.pop().payload == "extra"
    assert settled() < 5


def test_server_hangs_up_on_an_idle_connection(green, connect, settled):
    """A server that closes an idle connection does not make the loop spin."""
    conn, other = connect(), connect()
    query(conn)
    other.autocommit = True
    query(other, f"pg_terminate_backend({conn.info.backend_pid})")
    assert settled() < 5
    with pytest.raises(psycopg2.OperationalError):
        query(conn)
    assert settled() < 5


def test_descriptor_used_again(green, connect):
    """A connection that reuses the descriptor number of a closed one waits correctly."""
    numbers = set()
    for n in range(20):
        conn = connect()
        numbers.add(conn.fileno())
        assert query(conn, str(n)) == n
        conn.close()
    assert len(numbers) < 20


def test_descriptor_used_again_while_others_wait(green, connect):
    """Connections with reused descriptor numbers wait correctly beside others."""

    def work(n):
        for k in range(10):
            conn = connect()
            assert query(conn, f"{n} * 100 + {k} from pg_sleep(0.001)") == n * 100 + k
            conn.close()

    tasks = [green.spawn(work, n) for n in range(20)]
    for task in tasks:
        green.wait(task)


def test_nothing_is_kept_alive(green, dsn, settled):
    """The epoll set keeps no connection alive, also without close()."""
    gc.collect()  # so that no lower number than that connection's becomes free
    conn = psycopg2.connect(dsn)
    query(conn)
    number, gone = conn.fileno(), weakref.ref(conn)
    del conn
    gc.collect()
    assert gone() is None
    assert settled() < 5
    conn = psycopg2.connect(dsn)
    assert conn.fileno() == number
    assert query(conn) == 1
    conn.close()


def test_duplicate_of_a_closed_socket(green, connect, settled):
    """A duplicate of a closed socket does not make the loop spin."""
    conn = connect()
    query(conn)
    duplicate = os.dup(conn.fileno())
    conn.close()  # the server hangs up, which the duplicate goes on telling
    assert settled() < 5
    os.close(duplicate)


def test_duplicate_under_another_connection(green, connect, settled):
    """A duplicate of a closed socket does not make another connection's wait spin."""
    conn = connect()
    query(conn)
    number, duplicate = conn.fileno(), os.dup(conn.fileno())
    conn.close()
    conn = connect()
    assert conn.fileno() == number
    with green.ticking():
        assert query(conn, "42 from pg_sleep(0.5)") == 42
    before = epoll.entries[conn.fileno()].epoll_set._collected
    with green.ticking():
        assert query(conn, "43 from pg_sleep(0.5)") == 43
    assert epoll.entries[number].epoll_set._collected - before < 3 * CHECK_INTERVAL
    os.close(duplicate)
    assert settled() < 5


class SlowReader:
    """Passes a connection on to the server, reading slowly what the client sends.

    It lives in native threads, on the native sockets that are never patched.
    """

    def __init__(self, port):
        """Listen, for a server on *port*."""
        self._listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        self._listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVBUF, 16384)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(1)
        self._server = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        self._server.connect(("127.0.0.1", port))
        self.taken = 0  # bytes of the client's
        self.port = self._listener.getsockname()[1]
        native.start_thread(self._accept)

    def _accept(self):
        descriptor, _ = self._listener._accept()
        self._client = _socket.socket(fileno=descriptor)
        native.start_thread(lambda: self._copy(self._server, self._client, 0))
        self._copy(self._client, self._server, 0.0005)

    def _copy(self, source, target, pause):
        with suppress(OSError):
            while data := source.recv(65536):
                native_sleep(pause)
                target.sendall(data)
                if target is self._server:
                    self.taken += len(data)

    def connect(self):
        """Return a connection through it."""
        address = f"host=127.0.0.1 port={self.port} sslmode=disable"
        return psycopg2.connect(f"{address} user=postgres dbname=postgres")

    def close(self):
        """End the connection."""
        for sock in self._listener, self._server, self._client:
            with suppress(OSError):
                sock.shutdown(_socket.SHUT_RDWR)
            sock.close()


def test_slow_write(green, connect, dsn, settled):
    """A parameter that is sent slowly does not make the loop spin.

    That also holds if the server sends something meanwhile, which psycopg2 does not read
    before it has written everything.
    """
    proxy = SlowReader(int(parse_dsn(dsn)["port"]))
    conn = proxy.connect()
    conn.autocommit = True
    conn.cursor().execute("listen slow_write")
    other = connect()
    other.autocommit = True
    text = "x" * 20_000_000

    def write():
        cursor = conn.cursor()
        cursor.execute("select length(%s)", (text,))
        return cursor.fetchone()[0]

    epoll_set = epoll.entries[conn.fileno()].epoll_set
    before = epoll_set._collected
    with green.ticking():
        task = green.spawn(write)
        green.sleep(0.02)
        other.cursor().execute("notify slow_write")
        assert green.wait(task) == 20_000_000
    # One wake-up for each piece of the parameter, and not many more.
    assert epoll_set._collected - before < 20_000
    assert query(conn) == 1
    conn.close()
    proxy.close()
    assert settled() < 5


@pytest.mark.parametrize("autocommit", [True, False])
def test_slow_write_on_earlier_connection(green, dsn, autocommit):
    """The loop goes on, too, if the connection was opened while psycopg2 blocked."""
    proxy = SlowReader(int(parse_dsn(dsn)["port"]))
    with psycogreen.blocking():
        conn = proxy.connect()
    conn.autocommit = autocommit
    task = green.spawn(query, conn, f"length('{'x' * 10_000_000}')")
    taken = set()
    end = time.monotonic() + 60
    while proxy.taken < 9_900_000 and time.monotonic() < end:
        green.sleep(0.001)
        taken.add(proxy.taken)
    assert green.wait(task) == 10_000_000
    assert len([n for n in taken if 100_000 < n < 9_900_000]) >= 3
    conn.close()
    proxy.close()


def test_killed_while_it_waits(green, connect, settled):
    """A greenlet that is killed during a wait leaves nothing in the epoll set."""
    conn, other = connect(), connect()
    query(other)
    task = green.spawn(query, conn, "pg_sleep(60)")
    green.sleep(0.05)
    entry = epoll.entries[conn.fileno()]
    assert entry.epoll_set.waiting == 1
    green.kill(task)
    green.sleep(0.05)
    assert entry.waiter is None
    assert entry.epoll_set.waiting == 0
    assert settled() < 5
    assert query(other) == 1


def test_killed_by_the_one_before_in_the_batch(green, connect, settled):
    """A greenlet may kill another one whose answer is in the same batch."""
    conns = [connect(), connect()]
    for conn in conns:
        query(conn)
    ended = []
    tasks = {}

    def work(n):
        try:
            query(conns[n], "pg_sleep(0.1)")
            ended.append(f"{n} answered")
        except GreenletExit:
            ended.append(f"{n} killed")
            raise
        other = tasks[1 - n]
        if len(ended) == 1:
            other.throw(GreenletExit())

    for n in range(2):
        tasks[n] = green.spawn(work, n)
    green.sleep(0.02)
    native_sleep(0.4)  # both answers come while nobody looks
    green.sleep(0.05)
    assert sorted(line.split()[1] for line in ended) == ["answered", "killed"]
    assert settled() < 5
    with green.ticking():
        query(connect(), "pg_sleep(0.1)")


def test_switched_to_by_somebody(green, connect):
    """A waiting greenlet goes on waiting if other code switches to it."""
    conn = connect()
    query(conn)
    task = green.spawn(query, conn, "42 from pg_sleep(0.3)")
    green.sleep(0.05)
    for _ in range(3):
        green.call_in_hub(task.switch)
        green.sleep(0.01)
    assert green.wait(task) == 42


@pytest.fixture
def holder(connect):
    """A cursor whose transaction holds the advisory lock 1; a rollback frees it."""
    cursor = connect().cursor()
    cursor.execute("select pg_advisory_xact_lock(1)")
    return cursor


def test_two_greenlets_on_one_asynchronous_connection(green, dsn, holder):
    """A second greenlet that waits for an asynchronous connection gets an error."""
    conn = psycopg2.connect(dsn, async_=True)
    green.callback(conn)
    cursor = conn.cursor()
    cursor.execute("select 42, pg_advisory_xact_lock(1)")
    task = green.spawn(green.callback, conn)
    green.sleep(0.05)
    with pytest.raises(psycopg2.ProgrammingError, match="another greenlet waits"):
        green.callback(conn)
    holder.connection.rollback()
    green.wait(task)
    assert cursor.fetchone()[0] == 42
    conn.close()


def test_one_connection_in_two_threads(green, connect):
    """A connection that another thread uses waits with that thread's loop."""
    conn = connect()
    assert query(conn, "1 from pg_sleep(0.05)") == 1
    first = epoll.entries[conn.fileno()].epoll_set
    outcome = []

    def work():
        with green.ticking():
            outcome.append(query(conn, "2 from pg_sleep(0.05)"))
        outcome.append(epoll.entries[conn.fileno()].epoll_set)

    native.start_thread(work)
    deadline = time.monotonic() + 30
    while len(outcome) < 2:
        assert time.monotonic() < deadline
        native_sleep(0.01)
    assert outcome[0] == 2
    assert outcome[1] is not first
    with green.ticking():
        assert query(conn, "3 from pg_sleep(0.05)") == 3
    assert epoll.entries[conn.fileno()].epoll_set is first


def test_two_threads_on_one_asynchronous_connection(green, dsn, holder):
    """A second thread that waits for an asynchronous connection gets an error."""
    conn = psycopg2.connect(dsn, async_=True)
    green.callback(conn)
    cursor = conn.cursor()
    cursor.execute("select 42, pg_advisory_xact_lock(1)")
    task = green.spawn(green.callback, conn)
    green.sleep(0.05)
    outcome = []

    def work():
        green.sleep(0)  # makes a hub
        try:
            outcome.append(green.callback(conn))
        except psycopg2.ProgrammingError as ex:
            outcome.append(str(ex))

    native.start_thread(work)
    await_(green, lambda: outcome)
    holder.connection.rollback()
    with green.Timeout(60):
        green.wait(task)
    assert cursor.fetchone()[0] == 42
    assert "another greenlet waits" in outcome[0]
    conn.close()


def test_thread_with_the_number_of_a_former_one(green, connect):
    """A thread that reuses the number of an ended thread waits with its own loop."""
    conn = connect()
    outcome = []

    def work(hub):
        if hub:
            green.sleep(0)  # makes one
        try:
            answer = query(conn, "42 from pg_sleep(0.05)")
        except Exception as ex:
            answer = ex
        outcome.append((get_ident(), answer))

    numbers = []
    for hub in [True, False] * 10:
        native.start_thread(lambda hub=hub: work(hub))
        while not outcome:
            native_sleep(0.01)
        native_sleep(0.02)  # for the thread's end
        number, answer = outcome.pop()
        assert answer == 42
        numbers.append(number)
    assert len(set(numbers)) < len(numbers)


def test_taken_over_while_the_set_is_made_anew(green, connect, monkeypatch):
    """A connection that another thread takes over during a rebuild stays that thread's."""
    waiting, taken = connect(), connect()
    query(waiting)
    query(taken)
    epoll_set = epoll.entries[taken.fileno()].epoll_set
    outcome = []

    def take():
        green.sleep(0)
        outcome.append(query(taken, "42 from pg_sleep(0.3)"))

    class Slow:
        """A kernel's set: to change it lets other threads run."""

        def __init__(self):
            self._epoll = original()

        def __getattr__(self, name):
            return getattr(self._epoll, name)

        def register(self, fd, events):
            self._epoll.register(fd, events)
            if fd == waiting.fileno():
                native.start_thread(take)
                while epoll.entries[taken.fileno()].epoll_set is epoll_set:
                    native_sleep(0.01)

    original = epoll._epoll
    task = green.spawn(query, waiting, "pg_sleep(0.3)")
    green.sleep(0.05)
    monkeypatch.setattr(epoll, "_epoll", Slow)
    green.call_in_hub(epoll_set._rebuild)
    green.wait(task)
    deadline = time.monotonic() + 60
    while not outcome and time.monotonic() < deadline:
        green.sleep(0.01)
    assert outcome == [42]
    monkeypatch.undo()
    green.call_in_hub(epoll_set._rebuild)
    green.sleep(0.01)


def test_removed_while_its_events_are_changed(green, connect):
    """A socket that the loop removes before its events are changed is added again."""
    conn = connect()
    query(conn)
    entry = epoll.entries[conn.fileno()]
    epoll_set = entry.epoll_set
    original = epoll_set._epoll

    def modify(fd, events):
        epoll_set._epoll = original
        epoll_set.remove(fd)
        original.modify(fd, events)

    epoll_set._epoll = SimpleNamespace(register=original.register, modify=modify)
    entry.state = epoll.NOWHERE  # as while a connection is opened
    epoll_set.change(entry, POLL_READ)
    assert epoll_set._epoll is original
    assert entry.state == POLL_READ
    with green.Timeout(60):
        assert query(conn, "42 from pg_sleep(0.1)") == 42


def test_taken_over_while_an_entry_is_dropped():
    """An entry stays if its descriptor was another connection's a step before."""
    dropped, other = SimpleNamespace(fd=7), SimpleNamespace(fd=7)
    added = []

    class Entries(dict):
        def get(self, *arguments):
            found = super().get(*arguments)
            # After a call another thread may run.
            self[7] = other
            added.append(other)
            return found

    entries = Entries({7: dropped})
    pure.forget(dropped, entries)  # in C no other thread runs meanwhile
    pure.forget(dropped, entries)
    assert list(entries.values()) == added


def test_loops_in_many_threads(green, dsn):
    """The loops of several native threads work at the same time, each with its own set."""
    outcome = []

    def work():
        conns = [psycopg2.connect(dsn) for _ in range(3)]
        tasks = [green.spawn(query, conn, "42 from pg_sleep(0.1)") for conn in conns]
        outcome.append([green.wait(task) for task in tasks])
        for conn in conns:
            conn.close()

    for _ in range(4):
        native.start_thread(work)
    deadline = time.monotonic() + 30
    while len(outcome) < 4 and time.monotonic() < deadline:
        green.sleep(0.01)
    assert outcome == [[42] * 3] * 4


def test_new_hub(green, script):
    """After a hub was destroyed, old connections wait with the new hub."""
    if os.environ.get("EVENTLET_HUB") == "asyncio":
        pytest.skip("eventlet's asyncio hub cannot be made twice in a thread")
    script(
        """
        conn = psycopg2.connect(dsn)
        cursor = conn.cursor()
        cursor.execute("select 1")
        green.new_hub()
        for waiting in conn, psycopg2.connect(dsn):
            with green.ticking():
                cursor = waiting.cursor()
                cursor.execute("select 42, pg_sleep(0.1)")
            assert cursor.fetchone()[0] == 42
        """
    )


def test_new_hub_while_the_former_is_waited_with(green, script):
    """Connections use the new hub even if a greenlet still waits with the old one."""
    if green.name != "gevent":
        pytest.skip("eventlet's use_hub() is not for a hub that is waited with")
    if "libuv" in green.loop_name():
        pytest.skip("gevent does not return from destroying such a hub")
    script(
        """
        import gevent
        conn, other = psycopg2.connect(dsn), psycopg2.connect(dsn)
        for waiting in conn, other:
            waiting.cursor().execute("select 1")
        task = green.spawn(other.cursor().execute, "select pg_sleep(60)")
        green.sleep(0.1)
        green.new_hub()
        with green.ticking():
            cursor = conn.cursor()
            cursor.execute("select 42, pg_sleep(0.1)")
        assert cursor.fetchone()[0] == 42
        os._exit(0)
        """
    )


def test_without_epoll(green, script):
    """Without epoll the framework's own wait is used."""
    script(
        """
        from psycogreen._wait import epoll
        epoll.available = lambda: False
        check()
        assert not epoll.entries
        tasks = [green.spawn(query) for _ in range(10)]
        assert [green.wait(task) for task in tasks] == [42] * 10
        """
    )


def test_fairness(green, connect):
    """A connection that streams 100 MB does not starve the others."""
    conn, other = connect(), connect()
    query(other)
    rounds = []

    def stream():
        cursor = conn.cursor()
        cursor.execute("select repeat('x', 10000) from generate_series(1, 10000)")
        return cursor.rowcount

    def small_queries():
        while True:
            rounds.append(query(other))

    busy = green.spawn(small_queries)
    with green.ticking() as ticker:
        assert green.wait(green.spawn(stream)) == 10000
    green.kill(busy)
    assert len(rounds) > 5
    assert ticker.longest_stall < 1


def test_process_ends_with_idle_connections(green, script):
    """Idle connections do not keep a process from ending."""
    output = script(
        """
        conns = [psycopg2.connect(dsn) for _ in range(3)]
        for conn in conns:
            conn.cursor().execute("select 1")
        print("done")
        """
    )
    assert output.strip().endswith("done")


def test_loop_ends(green, script):
    """Gevent's loop ends when no greenlet waits, and not before."""
    if green.name != "gevent":
        pytest.skip("eventlet's loop has no end but the process's")
    script(
        """
        import gevent, gevent.event
        conn = psycopg2.connect(dsn)
        conn.cursor().execute("select 1")
        assert gevent.get_hub().join() is True
        gevent.wait()
        task = gevent.spawn(conn.cursor().execute, "select pg_sleep(0.3)")
        assert gevent.get_hub().join(0.05) is not True
        gevent.wait()
        assert task.ready() and task.successful()
        try:
            gevent.event.Event().wait()
        except gevent.exceptions.LoopExit:
            pass
        else:
            raise AssertionError
        """
    )


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("name", ["hold", "release"])
def test_wait_within_a_wait(green, connect, name, moment):
    """A destructor that runs when a wait begins or ends may wait itself."""
    conn, inner, longer = connect(), connect(), connect()
    for each in conn, inner, longer:
        query(each)
    green.sleep(0)  # the loop is not held any more
    epoll_set = epoll.entries[conn.fileno()].epoll_set
    original = getattr(epoll_set.hub, name)
    tasks = []

    def destroy():
        delattr(epoll_set.hub, name)
        tasks.append(green.spawn(query, longer, "43 from pg_sleep(0.4)"))
        assert query(inner, "42 from pg_sleep(0.1)") == 42

    def interrupted(*arguments):
        if moment == "before":
            destroy()
        original(*arguments)
        if moment == "after":
            destroy()

    setattr(epoll_set.hub, name, interrupted)
    with green.Timeout(60):
        assert query(conn, "41 from pg_sleep(0.1)") == 41
        green.sleep(0)
        assert green.wait(tasks[0]) == 43
        assert query(conn, "44 from pg_sleep(0.1)") == 44
    green.sleep(0)
    assert (epoll_set.waiting, epoll_set.held) == (0, False)


def test_interrupted_before_it_waits(green, connect, monkeypatch):
    """An exception from a signal handler before the switch leaves no waiter counted."""
    conn = connect()
    query(conn)
    green.sleep(0)  # the loop is not held any more
    epoll_set = epoll.entries[conn.fileno()].epoll_set

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(epoll_set.hub, "hold", interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt):
        query(conn)
    monkeypatch.undo()
    assert (epoll_set.waiting, epoll_set.held) == (0, False)
    conn = connect()
    query(conn)
    if not psycogreen.status().compiled:  # in C nothing runs there
        monkeypatch.setattr(pure, "getcurrent", interrupted)
        with pytest.raises(KeyboardInterrupt):
            query(conn)
        monkeypatch.undo()
    green.sleep(0)
    assert (epoll_set.waiting, epoll_set.held) == (0, False)


def test_loop_is_told_once(green, connect, monkeypatch):
    """Queries one after another tell the loop once that a greenlet waits."""
    conn = connect()
    query(conn)
    hub = epoll.entries[conn.fileno()].epoll_set.hub
    if not hub.releases_late:
        pytest.skip("eventlet's loop is told of each wait, which costs little")
    green.sleep(0)
    told = []

    def noted(name):
        original = getattr(hub, name)

        def note(epoll_set):
            told.append(name)
            original(epoll_set)

        monkeypatch.setattr(hub, name, note, raising=False)

    noted("hold")
    noted("release")
    for _ in range(5):
        query(conn)
    assert told == ["hold"]
    green.sleep(0)
    assert told == ["hold", "release"]
