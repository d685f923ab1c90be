"""Wait callbacks that make psycopg2 cooperate with coroutine libraries.

``patch_psycopg()`` makes every psycopg2 connection of this process wait cooperatively,
with gevent, eventlet or uWSGI: while one greenlet waits for PostgreSQL, the others
run. Importing this package imports psycopg2, but no coroutine library.
"""

import sys as _sys

try:
    import psycopg2 as _psycopg2  # noqa: F401
except ModuleNotFoundError as ex:
    if ex.name != "psycopg2":
        raise
    msg = (
        "psycogreen needs psycopg2, which is not installed: "
        "pip install psycopg2-binary (or psycopg2, to build it against your own libpq)"
    )
    # sys.argv[0] is "-m" while Python imports the package of ``python -m psycogreen``.
    if _sys.argv[:1] == ["-m"] and "psycogreen" in _sys.orig_argv:
        print("psycogreen: cannot check:", msg, file=_sys.stderr)
        raise SystemExit(2) from ex
    raise ImportError(msg, name="psycopg2") from ex

from psycogreen._check.checking import CheckReport, check
from psycogreen._check.findings import Finding
from psycogreen._errors import PatchConflict, WaitTimeout
from psycogreen._install import Status, patch_psycopg, status, unpatch_psycopg
from psycogreen._interface.blocking import blocking

__version__ = "2.0.0rc1"

__all__ = [
    "CheckReport",
    "Finding",
    "PatchConflict",
    "Status",
    "WaitTimeout",
    "__version__",
    "blocking",
    "check",
    "patch_psycopg",
    "status",
    "unpatch_psycopg",
]
