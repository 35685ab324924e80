"""Test of benchmarks/gpu_check.py: dry run on the CPU and conversion of its rows to tables."""

import csv
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_check.py"


@pytest.mark.long
@pytest.mark.timeout(200)
def test_dry_run_covers_every_part_and_prints_tables(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, str(SCRIPT), "--dry"]
    variables = {**os.environ, "OUT": str(tmp_path), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    with (tmp_path / "gpu_check.csv").open() as file:
        rows = list(csv.DictReader(file))
    parts = {row["part"] for row in rows}
    assert parts == {
        *("machine", "gradients", "kernels", "ale", "pictures", "resume", "cartpole", "td3", "a3c")
    }
    rates = [float(row["value"]) for row in rows if row["metric"].endswith("_per_s")]
    assert len(rates) > 10
    assert all(rate > 0 for rate in rates)
    command = [sys.executable, str(SCRIPT), "--table", str(tmp_path / "gpu_check.csv")]
    table = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
    for part in parts:
        assert f"| {part} |" in table.stdout
    newest = {(row["part"], row["name"], row["metric"]): row["value"] for row in rows}
    assert all(f"| {value} |" in table.stdout for value in newest.values())
