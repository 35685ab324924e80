"""Throughput of two commits of this repository, in alternated pairs of runs.

    python benchmarks/commits.py f9f6cfc --pairs 11 -- --workers 2 --envs-per-worker 1 64

The arguments after `--` go to throughput.py of either commit. Printed are the median rates and the
median, minimum and maximum of the ratio of the working tree to the other commit, for each cell.
"""

import dataclasses
import io
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections import defaultdict

import machine
import tyro

ROOT = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison."""

    commit: tyro.conf.Positional[str]
    """Commit to compare the working tree with."""
    pairs: int = 11
    """Number of pairs of runs."""


def rates(root: pathlib.Path, arguments: list[str]) -> dict[str, float]:
    """Runs throughput.py of a source tree and returns steps/s by cell."""
    command = [sys.executable, "benchmarks/throughput.py", "--repeats", "1", "--no-write"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    result = subprocess.run(
        [*command, *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.findall(r"^(.*?): ([\d,]+) steps/s", result.stdout, re.MULTILINE)
    return {cell: float(rate.replace(",", "")) for cell, rate in found}


def main() -> None:
    """Runs the pairs and prints the ratios after each."""
    own, _, arguments = " ".join(sys.argv[1:]).partition(" -- ")
    config = tyro.cli(Config, description=__doc__, args=own.split())
    print(machine.describe())
    measured: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "archive", config.commit], cwd=ROOT, capture_output=True, check=True
        )
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(folder, filter="data")
        trees = (pathlib.Path(folder), ROOT)
        for pair in range(config.pairs):
            order = trees if pair % 2 == 0 else trees[::-1]
            found = {tree: rates(tree, arguments.split()) for tree in order}
            for cell, rate in found[ROOT].items():
                measured[cell].append((found[trees[0]][cell], rate))
                ratios = [new / old for old, new in measured[cell]]
                medians = [statistics.median(side) for side in zip(*measured[cell], strict=True)]
                print(
                    f"{cell}: {config.commit} {medians[0]:,.0f}, here {medians[1]:,.0f} steps/s, "
                    f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to "
                    f"{max(ratios):.3f}), pairs {pair + 1}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
