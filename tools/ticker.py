"""The ticker, for what is not part of the package.

By its path: beside psycogreen 1.0.2, which is compared with, there is no other way.
"""

import runpy
from pathlib import Path

Ticker = runpy.run_path(str(Path(__file__).parents[1] / "psycogreen" / "_ticker.py"))[
    "Ticker"
]
