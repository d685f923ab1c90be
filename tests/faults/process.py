"""Try faults with one framework, in this process, one after the other.

Usage: process.py BACKEND

It is run by the lab, which names a fault on each line of standard input, and answers what
its script asks for.
"""

import sys
from collections import Counter

from contract.run import patch


def main() -> None:
    """Monkey-patch, patch psycopg2; go through each fault's script, and report."""
    [backend] = sys.argv[1:]
    patch(backend)
    from importlib import import_module

    from contract import frameworks
    from faults.bench import Bench, Refused, send
    from faults.scripts import REFUSED, SCRIPTS

    framework = backend.split("-")[0]
    # As psycogreen 1.0.2 has it as well.
    import_module(f"psycogreen.{framework}").patch_psycopg()
    green = frameworks.FRAMEWORKS[framework]()
    while fault := sys.stdin.readline().rstrip("\n"):
        bench = Bench(green)
        try:
            points = SCRIPTS[fault](bench)
        except Refused:
            points, bench.violations = 0, Counter({REFUSED: 1})
        send(report={"points": points, "violations": +bench.violations})


if __name__ == "__main__":
    main()
