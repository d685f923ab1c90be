"""Run the contract suite under one wait callback, in this process.

Usage: run.py BACKEND [pytest's arguments]

Without tests among the arguments it is the whole suite.

The monkey patch comes first, before pytest and psycopg2 are imported, as in an
application.
"""

import os
import sys
from pathlib import Path

# The environment variables of each backend. Its name begins with its framework.
BACKENDS = {
    "gevent-libev": {"GEVENT_LOOP": "libev-cext"},
    "gevent-libuv": {"GEVENT_LOOP": "libuv-cffi"},
    "eventlet-epolls": {"EVENTLET_HUB": "epolls"},
    "eventlet-asyncio": {"EVENTLET_HUB": "asyncio"},
    "eventlet-poll": {"EVENTLET_HUB": "poll"},
    "eventlet-selects": {"EVENTLET_HUB": "selects"},
    "gevent-pure": {"PSYCOGREEN_PURE": "1"},
    "eventlet-pure": {"PSYCOGREEN_PURE": "1"},
}

# The usual loop of each framework, with psycogreen in C and in Python. All tests that run
# at all run with these backends.
USUAL = ("gevent-libev", "eventlet-epolls", "gevent-pure", "eventlet-pure")

# Rarely used hubs: a full run has the module about the epoll set with them.
FEWER = ("eventlet-poll", "eventlet-selects")

# The modules about what a loop does: it watches sockets, wakes greenlets, runs in threads,
# forks and ends. The other modules are about what psycogreen builds upon a wait, which is
# the same with each loop: with other loops than the usual only a full run has them.
OF_THE_LOOP = ("epoll", "hub", "places")


def patch(backend: str) -> None:
    """Monkey-patch this process, for the loop that *backend* names."""
    os.environ.update(BACKENDS[backend])
    if backend.startswith("gevent"):
        from gevent import monkey

        monkey.patch_all()
    else:
        import eventlet

        eventlet.monkey_patch()


def modules(backend: str) -> list[Path]:
    """Return the modules of the suite that the backend is tested with."""
    pattern = "contract_epoll.py" if backend in FEWER else "contract_*.py"
    return sorted(Path(__file__).parent.glob(pattern))


def name(module: Path) -> str:
    """Return the name of a module of the suite, without what all names begin with."""
    return module.stem.removeprefix("contract_")


def reason_for_full_run(backend: str, module: Path) -> str:
    """Return why only a full run has the module with that backend, or an empty string."""
    if backend in FEWER:
        return "a rarely used hub"
    if backend not in USUAL and name(module) not in OF_THE_LOOP:
        return "does not depend on the loop, and runs with the usual ones"
    return ""


def main() -> None:
    """Monkey-patch, then hand over to pytest."""
    backend, *arguments = sys.argv[1:]
    patch(backend)
    import pytest
    from stream import VARIABLE, Stream

    if not any("::" in argument for argument in arguments):
        arguments += map(str, modules(backend))
    plugins = []
    if descriptor := os.environ.pop(VARIABLE, None):
        plugins.append(Stream(open(int(descriptor), "w")))  # noqa: SIM115
    # gevent's subprocess forks beside gevent's native threads. Python up to 3.14 never
    # raised its warning of that, even if warnings are errors; 3.15 does.
    ignored = ["This process (pid=:DeprecationWarning"]
    # A thread that ends leaves the greenlet of its loop as it is. Since Python 3.15 the
    # collector tells of a generator that was running in it: eventlet's asyncio hub is
    # one, and so is how _wait/pure.py collects. Nothing is to be closed there.
    for each in ("<coroutine object Hub.run", "<generator object BaseSet._collecting"):
        message = f"Exception ignored while closing generator {each}"
        ignored.append(f"{message}:pytest.PytestUnraisableExceptionWarning")
    options = [word for each in ignored for word in ("-W", f"ignore:{each}")]
    sys.exit(pytest.main(["-p", "no:cacheprovider", *options, *arguments], plugins))


if __name__ == "__main__":
    main()
