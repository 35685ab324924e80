"""What every benchmark prints first, and the paths it writes to."""

import csv
import pathlib
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

RESULTS = pathlib.Path(__file__).parent / "results"


def describe() -> str:
    """The processor, its usable cores and the versions that matter."""
    from hogwild_rl.runs.settings import usable_cores

    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "gymnasium", "numpy")]
    return (
        f"{_processor()}, {usable_cores()} usable cores; Python {platform.python_version()}, "
        f"{', '.join(versions)}"
    )


def _processor() -> str:
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_csv(name: str, rows: Sequence[Mapping[str, Any]]) -> pathlib.Path:
    """Writes benchmarks/results/NAME.csv; the columns are those of the first row."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
