"""Utilities of the benchmarks: machine description, CSV results, running processes."""

import contextlib
import csv
import pathlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

from hogwild_rl.config.base import usable_cores

RESULTS = pathlib.Path(__file__).parent / "results"


def describe() -> str:
    """Processor, usable cores and library versions."""
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
    """Writes benchmarks/results/NAME.csv with the columns of the first row."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_csv(name: str) -> list[dict[str, str]]:
    """Rows of benchmarks/results/NAME.csv; none if there is no such file."""
    path = RESULTS / f"{name}.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class Process(NamedTuple):
    """Ids of a running process, of its parent and of its session."""

    pid: int
    parent: int
    session: int


def processes() -> Iterator[Process]:
    """All processes except zombies."""
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                yield Process(int(stat.parent.name), int(fields[1]), int(fields[3]))
