"""The ticker, for programs that are not part of the package.

It is found by its path: psycogreen 1.0.2, which is compared with, does not have it.
"""

import runpy
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "psycogreen" / "_check" / "ticker.py"

Ticker = runpy.run_path(str(SOURCE))["Ticker"]
