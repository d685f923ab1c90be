"""Make docs/faults-table.rst: every fault, with psycogreen here and with 1.0.2.

psycogreen 1.0.2 is fetched from PyPI into .cache/.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from conftest import TESTS, environment
from faults.chaos import SECONDS_VARIABLE, SEED_VARIABLE
from faults.lab import Lab, open_lab
from faults.scripts import REFUSED, SCRIPTS

ROOT = TESTS.parent
OLD = ROOT / ".cache" / "psycogreen-1.0.2"
CHAOS = {SEED_VARIABLE: "1", SECONDS_VARIABLE: "20"}
FRAMEWORKS = {"gevent": "gevent-libev", "eventlet": "eventlet-epolls"}
NOTHING = "–"  # noqa: RUF001

Report = dict[str, object]


def main() -> None:
    """Run all, with both frameworks at the same time, and write the table."""
    if not OLD.exists():
        _install_old()
    with ThreadPoolExecutor() as pool:
        reports = dict(zip(FRAMEWORKS, pool.map(_run_all, FRAMEWORKS), strict=True))
    rows = [_row(fault, reports) for fault in SCRIPTS]
    headings = ["Fault", "Points"]
    for framework in FRAMEWORKS:
        headings += [f"{framework}, psycogreen 2", f"{framework}, psycogreen 1.0.2"]
    table = "\n".join(_line(row) for row in [headings, *rows])
    path = ROOT / "docs" / "faults-table.rst"
    path.write_text(
        ".. Made by 'make faults'.\n\n"
        f".. list-table::\n   :header-rows: 1\n\n{table}\n",
        encoding="utf-8",
    )


def _install_old() -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*command, f"--target={OLD}", "psycogreen==1.0.2"], check=True)


def _run_all(framework: str) -> dict[str, tuple[Report, Report]]:
    with tempfile.TemporaryDirectory() as folder, open_lab(Path(folder)) as lab:
        return {fault: _run(lab, FRAMEWORKS[framework], fault) for fault in SCRIPTS}


def _run(lab: Lab, backend: str, fault: str) -> tuple[Report, Report]:
    """Return the reports of psycogreen here, and of 1.0.2."""
    if fault.endswith("TLS") and not lab.root:
        report: Report = {"points": NOTHING, "violations": {"not run": 1}}
        return report, report
    env = {**environment(lab.server), **CHAOS}
    old = {**env, "PYTHONPATH": f"{OLD}{os.pathsep}{env['PYTHONPATH']}"}
    reports = lab.run(backend, fault, env), lab.run(backend, fault, old)
    print(backend, fault, *[report["violations"] for report in reports], flush=True)
    return reports


def _row(fault: str, reports: dict[str, dict[str, tuple[Report, Report]]]) -> list[str]:
    points = reports["gevent"][fault][0]["points"]
    cells = [
        _cell(report)
        for framework in FRAMEWORKS
        for report in reports[framework][fault]
    ]
    return [fault, str(points or "none"), *cells]


def _cell(report: Report) -> str:
    violations = report["violations"]
    if REFUSED in violations:
        return REFUSED
    text = ", ".join(f"{text}: {count}" for text, count in violations.items())
    return text or ("ok" if report["points"] else NOTHING)


def _line(cells: list[str]) -> str:
    return "\n".join(
        f"   {'  ' if n else '* '}- {cell}" for n, cell in enumerate(cells)
    )


if __name__ == "__main__":
    main()
