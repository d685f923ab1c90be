"""Installing, reporting and removing the callback in a process."""

import textwrap

import pytest

MONKEY_PATCH = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import eventlet; eventlet.monkey_patch(psycopg=False)",
}
FRAMEWORKS = list(MONKEY_PATCH)

each_framework = pytest.mark.parametrize("framework", FRAMEWORKS)

START = """
import os, sys
import psycopg2
from psycopg2.extensions import get_wait_callback, set_wait_callback
from psycopg2.extras import wait_select
"""


@pytest.fixture
def run(python):
    """Run code in a new process, after the imports that all of it needs."""

    def run(code, *, patched=None, **options):
        start = MONKEY_PATCH[patched] + "\n" if patched else ""
        return python(start + START + textwrap.dedent(code), **options)

    return run


def test_import_is_light(python):
    """Importing psycogreen imports no framework, and patches nothing."""
    python(
        "import psycogreen, sys\n"
        "from psycopg2.extensions import get_wait_callback\n"
        "found = {name.split('.')[0] for name in sys.modules}\n"
        "assert not found & {'gevent', 'eventlet', 'greenlet', 'uwsgi'}, found\n"
        "assert get_wait_callback() is None"
    )


@each_framework
def test_import_of_a_framework_patches_nothing(run, framework):
    """Importing a framework's module installs nothing and monkey-patches nothing."""
    run(
        f"""
        import psycogreen.{framework}
        assert get_wait_callback() is None
        assert not psycogreen.status().monkey_patched
        """
    )


@each_framework
def test_names_of_version_1(run, framework):
    """The public names of psycogreen 1.0.2 work as before."""
    run(
        f"""
        import psycogreen.{framework}
        assert psycogreen.{framework}.patch_psycopg() is None
        callback = psycogreen.{framework}.{framework}_wait_callback
        assert get_wait_callback() is callback
        connection = psycopg2.connect(os.environ["DSN"], async_=True)
        callback(connection, timeout=30)
        callback(connection, None)
        callback(connection, -1)
        """
    )


@each_framework
def test_by_name(run, framework):
    """A framework is installed by its name, monkey-patched or not."""
    run(
        f"""
        import psycogreen
        psycogreen.patch_psycopg({framework!r})
        status = psycogreen.status()
        assert status == psycogreen.Status(
            framework={framework!r},
            engine=None,
            callback="psycogreen.{framework}.{framework}_wait_callback",
            monkey_patched=False,
            pid=os.getpid(),
            resolve_hosts=True,
            cancel_interrupted=True,
            compiled=True,
            waiting=0,
            longest_wait=0.0,
            waits=0,
            timed_out=0,
            cancelled=0,
        ), status
        """
    )


@each_framework
def test_detected(run, framework):
    """Without a name, the framework that has monkey-patched is installed."""
    run(
        f"""
        import psycogreen
        psycogreen.patch_psycopg()
        assert psycogreen.status().framework == {framework!r}
        assert psycogreen.status().monkey_patched
        """,
        patched=framework,
    )


def test_nothing_to_detect(run):
    """Without a name and a monkey patch, the error says what to call."""
    run(
        """
        import gevent.monkey, eventlet, psycogreen
        try:
            psycogreen.patch_psycopg()
        except RuntimeError as ex:
            assert "gevent.monkey.patch_all()" in str(ex)
            assert "eventlet.monkey_patch()" in str(ex)
            assert "uWSGI with an async engine" in str(ex)
        else:
            raise AssertionError
        """
    )


def test_too_much_to_detect(run):
    """With two monkey patches and no name, an error is raised."""
    run(
        """
        import eventlet.patcher, psycogreen
        eventlet.patcher.already_patched["socket"] = True
        try:
            psycogreen.patch_psycopg()
        except RuntimeError as ex:
            assert "gevent and eventlet have both" in str(ex), ex
        else:
            raise AssertionError
        """,
        patched="gevent",
    )


def test_unknown_framework(run):
    """An unknown name is shown, with the known ones."""
    run(
        """
        import psycogreen
        try:
            psycogreen.patch_psycopg("twisted")
        except ValueError as ex:
            assert "'twisted'" in str(ex) and "'gevent', 'eventlet'" in str(ex)
        else:
            raise AssertionError
        """
    )


def test_stand_in_for_uwsgi(run):
    """A module named uwsgi that is not uWSGI's is ignored."""
    run(
        """
        import sys, types
        import psycogreen
        sys.modules["uwsgi"] = types.ModuleType("uwsgi")
        assert psycogreen.status().engine is None
        psycogreen.patch_psycopg()
        assert psycogreen.status().framework == "gevent"
        """,
        patched="gevent",
    )


@pytest.mark.parametrize(
    "call", ["psycogreen.patch_psycopg('uwsgi')", "import psycogreen.uwsgi"]
)
def test_uwsgi_elsewhere(run, call):
    """Outside uWSGI, "uwsgi" raises an error that says how to run it."""
    run(
        f"""
        import psycogreen
        try:
            {call}
        except ImportError as ex:
            assert ex.name == "uwsgi"
            assert "only in uWSGI's processes" in str(ex), ex
            assert "--import psycogreen.integrations.uwsgi" in str(ex), ex
        else:
            raise AssertionError
        assert get_wait_callback() is None
        """
    )


@each_framework
def test_idempotent(run, framework):
    """Patching again does nothing, also in a forked child."""
    run(
        f"""
        import warnings, psycogreen
        psycogreen.patch_psycopg({framework!r})
        installed = get_wait_callback()
        psycogreen.patch_psycopg({framework!r})
        psycogreen.{framework}.patch_psycopg()
        assert get_wait_callback() is installed
        warnings.simplefilter("ignore")  # eventlet warns of any fork
        pid = os.fork()
        if not pid:
            psycogreen.patch_psycopg({framework!r})
            ok = get_wait_callback() is installed
            os._exit(0 if ok and psycogreen.status().pid == os.getpid() else 1)
        assert os.waitpid(pid, 0)[1] == 0
        """
    )


@each_framework
def test_options_of_a_later_call(run, framework):
    """A later call changes the options that are given, and keeps the others."""
    run(
        f"""
        import psycogreen
        def options():
            status = psycogreen.status()
            return status.resolve_hosts, status.cancel_interrupted
        psycogreen.patch_psycopg({framework!r})
        assert options() == (True, True)
        psycogreen.patch_psycopg({framework!r}, cancel_interrupted=False)
        assert options() == (True, False)
        psycogreen.patch_psycopg({framework!r}, resolve_hosts=False)
        assert options() == (False, False)
        psycogreen.patch_psycopg({framework!r})
        assert options() == (False, False)
        psycogreen.patch_psycopg({framework!r}, cancel_interrupted=True)
        assert options() == (False, True)
        psycogreen.unpatch_psycopg()
        psycogreen.patch_psycopg({framework!r})
        assert options() == (True, True)
        """
    )


@each_framework
def test_options_of_the_environment(run, framework):
    """Environment variables set the defaults of options; a call overrides them."""
    run(
        f"""
        import psycogreen
        psycogreen.patch_psycopg({framework!r})
        status = psycogreen.status()
        assert (status.resolve_hosts, status.cancel_interrupted) == (False, False)
        psycogreen.patch_psycopg({framework!r}, cancel_interrupted=True)
        assert psycogreen.status().cancel_interrupted
        """,
        PSYCOGREEN_RESOLVE_HOSTS="0",
        PSYCOGREEN_CANCEL_INTERRUPTED="0",
    )


def test_wrong_option_of_the_environment(run):
    """A wrong value of an environment variable is refused, and nothing is installed."""
    run(
        """
        import psycogreen
        try:
            psycogreen.patch_psycopg("gevent")
        except ValueError as ex:
            assert "PSYCOGREEN_RESOLVE_HOSTS='no': it must be '0' or '1'" in str(ex)
        else:
            raise AssertionError
        assert get_wait_callback() is None
        """,
        PSYCOGREEN_RESOLVE_HOSTS="no",
    )


@each_framework
def test_conflict(run, framework):
    """A foreign callback is replaced only with replace=True; the error names both."""
    run(
        f"""
        import psycogreen
        set_wait_callback(wait_select)
        try:
            psycogreen.patch_psycopg({framework!r})
        except psycogreen.PatchConflict as ex:
            assert "psycopg2.extras.wait_select" in str(ex)
            assert "psycogreen.{framework}.{framework}_wait_callback" in str(ex)
            assert "replace=True" in str(ex)
        else:
            raise AssertionError
        assert get_wait_callback() is wait_select
        status = psycogreen.status()
        assert status.framework is None
        assert status.callback == "psycopg2.extras.wait_select"
        psycogreen.patch_psycopg({framework!r}, replace=True)
        assert psycogreen.status().framework == {framework!r}
        """
    )


def test_two_frameworks(run):
    """Installing a second framework's callback raises PatchConflict."""
    run(
        """
        import psycogreen.gevent, psycogreen.eventlet
        psycogreen.gevent.patch_psycopg()
        try:
            psycogreen.eventlet.patch_psycopg()
        except psycogreen.PatchConflict as ex:
            assert "gevent_wait_callback" in str(ex) and "eventlet_wait" in str(ex)
        else:
            raise AssertionError
        assert psycogreen.status().framework == "gevent"
        psycogreen.eventlet.patch_psycopg(replace=True)
        assert psycogreen.status().framework == "eventlet"
        """
    )


QUERY_AND_PRINT_WARNINGS = """
import logging
handler = logging.StreamHandler(sys.stdout)
logging.getLogger("psycogreen").addHandler(handler)
for _ in range(2):
    psycopg2.connect(os.environ["DSN"]).cursor().execute("select 1")
"""
PATCH_CALL = {
    "gevent": "gevent.monkey.patch_all()",
    "eventlet": "eventlet.monkey_patch()",
}


@each_framework
def test_nothing_is_monkey_patched(run, framework):
    """A program that patches psycopg2 alone is warned of that, once, at a query."""
    install = f"import psycogreen; psycogreen.patch_psycopg({framework!r})"
    printed = run(install + QUERY_AND_PRINT_WARNINGS)
    assert printed.count("nothing is monkey-patched") == 1
    assert f"call {PATCH_CALL[framework]} before" in printed


@pytest.mark.parametrize(
    "program",
    [
        "psycogreen.patch_psycopg('gevent'); {gevent}patch_all()",
        "psycogreen.patch_psycopg('gevent'); {gevent}patch_time()",
        "psycogreen.patch_psycopg('eventlet'); {eventlet}monkey_patch()",
        "psycogreen.patch_psycopg('eventlet'); {eventlet}monkey_patch(time=True)",
        "psycogreen.patch_psycopg('gevent'); import logging; "
        + "logging.getLogger('psycogreen.monkey_patch').setLevel('ERROR')",
    ],
    ids=["after", "partly", "eventlet after", "eventlet partly", "turned off"],
)
def test_no_warning_of_a_monkey_patch(run, program):
    """A later patch, a partial one, and a program that says so are not warned of."""
    modules = {
        "gevent": "from gevent import monkey; monkey.",
        "eventlet": "import eventlet; eventlet.",
    }
    install = f"import psycogreen; {program.format(**modules)}"
    assert run(install + QUERY_AND_PRINT_WARNINGS) == ""


@pytest.mark.parametrize("order", ["before", "after"])
def test_builtin_callback_of_eventlet(run, order):
    """Eventlet's built-in callback is replaced, whichever is installed first."""
    calls = ["eventlet.monkey_patch()", "psycogreen.patch_psycopg('eventlet')"]
    first, second = calls if order == "before" else reversed(calls)
    run(
        f"""
        import eventlet, psycogreen
        {first}
        {second}
        name = psycogreen.status().callback
        assert name == "psycogreen.eventlet.eventlet_wait_callback", name
        """
    )


def test_builtin_callback_of_eventlet_is_not_gevents(run):
    """Eventlet's built-in callback conflicts with gevent's."""
    run(
        """
        import eventlet, psycogreen
        eventlet.monkey_patch()
        assert psycogreen.status().framework == "eventlet"
        try:
            psycogreen.patch_psycopg("gevent")
        except psycogreen.PatchConflict as ex:
            assert "eventlet.support.psycopg2_patcher" in str(ex)
        else:
            raise AssertionError
        psycogreen.unpatch_psycopg()
        assert get_wait_callback() is not None
        """
    )


@each_framework
def test_unpatch(run, framework):
    """Unpatching makes psycopg2 block again, and is idempotent."""
    run(
        f"""
        import psycogreen
        psycogreen.unpatch_psycopg()
        psycogreen.patch_psycopg({framework!r})
        psycogreen.unpatch_psycopg()
        assert get_wait_callback() is None
        psycogreen.unpatch_psycopg()
        status = psycogreen.status()
        assert (status.framework, status.callback) == (None, None)
        """
    )


def test_unpatch_leaves_what_is_foreign(run):
    """A foreign callback is never removed."""
    run(
        """
        import psycogreen
        set_wait_callback(wait_select)
        psycogreen.unpatch_psycopg()
        assert get_wait_callback() is wait_select
        """
    )


def test_foreign_callable_without_a_name(run):
    """status() shows a callback without a name by its repr."""
    run(
        """
        import psycogreen
        class Callback:
            def __call__(self, conn): pass
            def __repr__(self): return "<my callback>"
        set_wait_callback(Callback())
        assert psycogreen.status().callback == "<my callback>"
        """
    )


@each_framework
def test_unpatched_queries_block(run, framework):
    """After unpatching, queries block and work."""
    run(
        f"""
        import psycogreen
        psycogreen.patch_psycopg({framework!r})
        connection = psycopg2.connect(os.environ["DSN"])
        psycogreen.unpatch_psycopg()
        cursor = connection.cursor()
        cursor.execute("select 1")
        assert cursor.fetchone() == (1,)
        """,
        patched=framework,
    )
