"""Try one fault with one framework, in this process.

Usage: process.py BACKEND FAULT

It is run by the lab, which answers what it asks for.
"""

import sys
from collections import Counter

from contract.run import patch


def main() -> None:
    """Monkey-patch, patch psycopg2, go through the fault's script, report."""
    backend, fault = sys.argv[1:]
    patch(backend)
    from importlib import import_module

    from contract import frameworks
    from faults.bench import Bench, Refused, send
    from faults.scripts import REFUSED, SCRIPTS

    framework = backend.split("-")[0]
    # As psycogreen 1.0.2 has it as well.
    import_module(f"psycogreen.{framework}").patch_psycopg()
    bench = Bench(frameworks.FRAMEWORKS[framework]())
    try:
        points = SCRIPTS[fault](bench)
    except Refused:
        points, bench.violations = 0, Counter({REFUSED: 1})
    send(report={"points": points, "violations": +bench.violations})


if __name__ == "__main__":
    main()
