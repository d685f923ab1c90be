"""Every place that psycopg2 may be called from."""

import os
import threading

import psycopg2
import pytest
from children import query

from psycogreen._wait import native


def in_native_thread(function):
    """Return what *function* returns in a native thread without a loop."""
    outcome = []

    def work():
        try:
            outcome.append((function(), None))
        except BaseException as ex:
            outcome.append((None, ex))

    native.start_thread(work)
    native_sleep = native.original("time", "sleep")
    while not outcome:
        native_sleep(0.01)
    [(value, error)] = outcome
    if error:
        raise error
    return value


def test_native_thread(green, dsn):
    """A query in a native thread without a loop blocks, and makes no hub."""

    def work():
        answer = query(dsn)
        return answer, green.has_hub()

    assert in_native_thread(work) == (42, False)


def test_native_thread_with_a_limit(green, dsn):
    """The callback's limit holds in a native thread without a loop."""

    def work():
        conn = psycopg2.connect(dsn, async_=True)
        green.callback(conn)
        conn.cursor().execute("select pg_sleep(60)")
        try:
            green.callback(conn, timeout=0.05)
        except psycopg2.OperationalError as ex:
            return type(ex).__name__
        finally:
            conn.close()

    assert in_native_thread(work) == "WaitTimeout"


def test_native_thread_beside_the_loop(green, dsn):
    """The main thread's loop goes on while a native thread waits."""
    done = []

    def work():
        conn = psycopg2.connect(dsn)
        conn.cursor().execute("select pg_sleep(0.3)")
        conn.close()
        done.append(True)

    with green.ticking():
        native.start_thread(work)
        while not done:
            green.sleep(0.01)


def test_native_thread_with_a_loop(green, dsn):
    """A native thread with its own loop waits with that loop."""

    def work():
        with green.ticking():
            return query(dsn), green.has_hub()

    assert in_native_thread(work) == (42, True)


def test_patched_thread(green, dsn):
    """A monkey-patched thread waits like any greenlet."""
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(query(dsn))) for _ in range(5)
    ]
    with green.ticking():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [42] * 5


def test_thread_pool(green, dsn):
    """A query in the framework's thread pool lets the loop go on."""
    with green.ticking():
        assert green.in_thread_pool(query, dsn) == 42


@pytest.mark.parametrize(
    "before", [True, False], ids=["used before", "not used before"]
)
def test_fork(green, script, before):
    """After a fork, parent and child each wait with their own loop."""
    if not before and os.environ.get("EVENTLET_HUB") == "asyncio":
        pytest.skip("eventlet's asyncio hub cannot be forked before it has run")
    script(
        f"""
        if {before}:
            check()
        pid = os.fork()
        check()
        if not pid:
            check()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        check()
        """
    )


def test_fork_during_queries(green, script):
    """A fork during queries does not disturb the parent's queries.

    A fork during connecting may: there eventlet's hub itself waits for the socket, and
    shares its epoll descriptor with the child's hub.
    """
    script(
        """
        def wait():
            cursor = conns.pop().cursor()
            cursor.execute("select 42, pg_sleep(0.5)")
            return cursor.fetchone()[0]

        conns = [psycopg2.connect(dsn) for _ in range(10)]
        tasks = [green.spawn(wait) for _ in range(10)]
        green.sleep(0.05)
        pid = os.fork()
        if not pid:
            check()
            os._exit(0)
        assert [green.wait(task) for task in tasks] == [42] * 10
        assert os.waitpid(pid, 0)[1] == 0
        check()
        """
    )


def test_parent_ends(green, script):
    """A child does not spin when the server closes an inherited connection."""
    output = script(
        """
        import time
        from psycogreen._wait import native
        conn = psycopg2.connect(dsn)
        cursor = conn.cursor()
        cursor.execute("select 1")
        if os.fork():
            os._exit(0)
        native.original("time", "sleep")(0.2)
        other = psycopg2.connect(dsn)
        other.autocommit = True
        cursor = other.cursor()
        cursor.execute("select pg_terminate_backend(%s)", (conn.info.backend_pid,))
        green.sleep(0.1)
        begin = time.process_time()
        green.sleep(1)
        print("busy for", time.process_time() - begin)
        """
    )
    assert float(output.split()[-1]) < 0.4, output


def test_fork_in_the_middle_of_a_batch(green, script):
    """A fork during a batch of events does not wake waits of the parent in the child."""
    script(
        """
        from psycogreen._wait import native
        native_sleep = native.original("time", "sleep")

        def work():
            conn.cursor().execute("select pg_sleep(0.1)")
            pid = os.fork()
            if not pid:
                native_sleep(0.2)  # the parent goes first
                green.sleep(0.1)
                os._exit(0)
            return pid

        conn, listener, sender = (psycopg2.connect(dsn) for _ in range(3))
        for each in listener, sender:
            each.autocommit = True
        listener.cursor().execute("listen forked")
        # So that answer and notification come in this order, while nobody looks.
        task = green.spawn(work)
        green.sleep(0.02)
        with psycogreen.blocking():
            sender.cursor().execute("select pg_sleep(0.3); notify forked")
        native_sleep(0.1)
        pid = green.wait(task)
        with green.Timeout(60):
            listener.cursor().execute("select pg_sleep(0.5)")
        assert os.waitpid(pid, 0)[1] == 0
        check()
        """
    )


def test_multiprocessing_fork(green, script):
    """A child that multiprocessing has forked queries with its own loop."""
    script(
        """
        import multiprocessing
        from children import exit_status
        check()
        process = multiprocessing.get_context("fork").Process(target=check)
        process.start()
        assert exit_status(process.pid) == 0
        check()
        os._exit(0)  # or else multiprocessing awaits the child once more
        """
    )


def test_multiprocessing_spawn(green, script, dsn):
    """A child that multiprocessing has spawned can patch and query."""
    script(
        f"""
        import multiprocessing
        from children import spawned
        check()
        arguments = ({os.environ["PSYCOGREEN_TEST_BACKEND"]!r}, {dsn!r})
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=spawned, args=arguments)
        process.start()
        process.join()
        assert process.exitcode == 0
        check()
        """
    )


def test_atexit(green, script):
    """A handler that runs when the interpreter shuts down may still query."""
    output = script(
        """
        import atexit
        atexit.register(lambda: print("answer", query()))
        check()
        """
    )
    assert output.strip().endswith("answer 42")


def test_kept_until_the_end(green, script):
    """A connection that is collected after psycogreen's modules leaves no message."""
    output = script(
        """
        import socket
        os.kept = conn = psycopg2.connect(dsn.replace("127.0.0.1", "localhost"))
        conn.cursor().execute("select 42")
        socket.kept = conn
        """
    )
    assert "_forget" not in output, output  # the names of the callbacks


def test_module_level(green, script):
    """A query may be the first wait of a program: it makes the hub."""
    assert script("print(query())").strip().endswith("42")
