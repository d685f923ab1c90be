"""Which modules of the contract suite run with which backend."""

from contract.run import (
    BACKENDS,
    FEWER,
    OF_THE_LOOP,
    USUAL,
    modules,
    name,
    reason_for_full_run,
)


def test_usual_backends():
    """All modules run with the usual backends."""
    for backend in USUAL:
        assert not any(reason_for_full_run(backend, path) for path in modules(backend))


def test_other_loops():
    """The modules about the loop run with the other loops too, and only those."""
    for backend in BACKENDS.keys() - {*USUAL, *FEWER}:
        every = modules(backend)
        chosen = {
            name(path) for path in every if not reason_for_full_run(backend, path)
        }
        assert chosen == set(OF_THE_LOOP)


def test_rare_hubs():
    """A full run has the module about the epoll set with the rarely used hubs."""
    for backend in FEWER:
        [path] = modules(backend)
        assert name(path) == "epoll"
        assert reason_for_full_run(backend, path)
