"""``python -m psycogreen``: what is installed here, and whether it is green."""

import sys

from psycogreen._check.command import main

if __name__ == "__main__":
    sys.exit(main())
