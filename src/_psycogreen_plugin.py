"""gevent's way to psycogreen: what gevent calls when it has monkey-patched.

Not part of the psycogreen package, whose import brings in psycopg2: every process
that gevent patches loads this, in all environments that psycogreen is installed in.
"""

import os


def patch_psycopg(event: object) -> None:
    """Install gevent's wait callback if ``PSYCOGREEN=gevent`` asks for it.

    Raise `ValueError` if the variable asks for anything else.
    """
    value = os.environ.get("PSYCOGREEN", "")
    if not value:
        return
    if value != "gevent":
        msg = f"PSYCOGREEN={value!r}: it must be 'gevent', or unset"
        raise ValueError(msg)
    from psycogreen.gevent import patch_psycopg

    patch_psycopg()
