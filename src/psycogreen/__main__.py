"""``python -m psycogreen``: list the versions in use, or check for blocking."""

import sys

from psycogreen._check.command import main

if __name__ == "__main__":
    sys.exit(main())
