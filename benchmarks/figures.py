"""The figures of a run, by measure, case and way."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from ways import fetched_versions

from psycogreen._wait import twin

LIBRARIES = [
    *("psycogreen", "psycopg2-binary"),
    *("gevent", "eventlet", "greenlet", "cffi", "gunicorn"),
]

# measure, case, way: a figure for each round
Samples = dict[str, dict[str, dict[str, list[float]]]]


@dataclass
class Figures:
    """All figures of a run."""

    environment: dict[str, str]
    samples: Samples = field(default_factory=dict)

    def add(self, measure: str, case: object, way: str, figure: float) -> None:
        """Add the *figure* of one round."""
        cases = self.samples.setdefault(measure, {})
        cases.setdefault(str(case), {}).setdefault(way, []).append(figure)

    def median(self, measure: str, case: object, way: str) -> float:
        """Return the median of all rounds."""
        return statistics.median(self.samples[measure][str(case)][way])

    def save(self, path: Path) -> None:
        """Write all rounds of all figures as JSON."""
        content = {"environment": self.environment, "samples": self.samples}
        path.write_text(json.dumps(content, indent=1) + "\n")


def load(path: Path) -> Figures:
    """Return the figures that `Figures.save` has written."""
    return Figures(**json.loads(path.read_text()))


def environment(postgres: str) -> dict[str, str]:
    """Return the versions and the machine; *postgres* is the server's version."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": f"{os.cpu_count()} of {_processor()}",
        "kernel": f"{platform.system()} {platform.release()}",
        "load before": f"{os.getloadavg()[0]:.1f}",
        "Python": platform.python_version(),
        "PostgreSQL": postgres,
        **{library: version(library) for library in LIBRARIES},
        **fetched_versions(),
        "psycogreen compiled": "yes" if twin.compiled else "no",
        "HTTP client": "wrk" if shutil.which("wrk") else "benchmarks/client.py",
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
