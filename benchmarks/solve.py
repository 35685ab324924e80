"""Time to solution: seconds from process start until an environment is solved, on several seeds.

    python benchmarks/solve.py --env CartPole-v1 --seeds 20
    python benchmarks/solve.py --env LunarLander-v3 --seeds 5

Each seed runs in its own process, which is timed from before its start until its exit, including
imports, training and the last checkpoint. Solved means that the mean return of the last 100
training episodes has reached the environment's registered threshold, or `--target-return`.
"""

import csv
import dataclasses
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import machine
import tyro

from hogwild_rl import plot

_CURVE = ("time_s", "steps", "return_mean")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the measurement."""

    env: str = "CartPole-v1"
    """Environment id."""
    seeds: int = 20
    """Number of seeds: 0, 1, 2, ..."""
    algorithm: str = "a3c"
    """Module of hogwild_rl."""
    workers: int | None = None
    """Number of worker processes; default: the algorithm's."""
    target_return: float | None = None
    """Mean return that counts as solved; default: the registered threshold."""
    total_timesteps: int | None = None
    """Steps of one run; default: the preset's."""
    curves: bool = False
    """Also write the learning curves of all seeds, as a table and as a plot."""
    write: bool = True
    """Write benchmarks/results/solve_*.csv."""


def solve(
    algorithm: str, flags: Mapping[str, Any], timeout_s: float | None = None
) -> dict[str, Any]:
    """Trains in a new process until solved or until the budget is used; see `train`."""
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder) / "run"
        return train(algorithm, {**flags, "stop_when_solved": True}, run, timeout_s)


def train(
    algorithm: str, flags: Mapping[str, Any], run: pathlib.Path, timeout_s: float | None = None
) -> dict[str, Any]:
    """Trains in a new process, which writes the folder `run`.

    Returns:
        Row with the settings, solved, the steps and seconds of training until then, wall_s of the
        whole process, and train_s, steps and return_mean at the end.
    """
    words = command(algorithm, {**flags, "run_dir": run})
    start_s = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=timeout_s)
    wall_s = time.perf_counter() - start_s
    solved = re.search(r"solved: .* after ([\d,]+) steps, ([\d.]+) s", done.stdout)
    with (run / "progress.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    settings = json.loads((run / "settings.json").read_text())["settings"]
    return {
        "env": settings["env"],
        "workers": settings.get("workers", ""),
        "envs_per_worker": settings.get("envs_per_worker", ""),
        "seed": settings["seed"],
        "solved": solved is not None,
        "solved_steps": int(solved[1].replace(",", "")) if solved else "",
        "solved_s": float(solved[2]) if solved else "",
        "wall_s": round(wall_s, 2),
        "train_s": round(float(last["time_s"]), 2),
        "steps": int(last["steps"]),
        "return_mean": round(float(last["return_mean"]), 1),
    }


def curve(run: pathlib.Path, seed: int) -> list[dict[str, Any]]:
    """Learning curve of a run: mean return by seconds and steps, from its log."""
    with (run / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{"seed": seed, **{name: row[name] for name in _CURVE}} for row in rows]


def command(algorithm: str, flags: Mapping[str, Any]) -> list[str]:
    """Command line that starts a run with these settings."""
    words = [word for name, value in flags.items() for word in flag(name, value)]
    return [sys.executable, "-m", f"hogwild_rl.{algorithm}", *words]


def flag(name: str, value: Any) -> list[str]:
    """Command-line form of a setting."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]


def main() -> None:
    """Times every seed; prints and writes the results."""
    config = tyro.cli(Config, description=__doc__)
    print(machine.describe())
    flags: dict[str, Any] = {"env": config.env, "stop_when_solved": True}
    for name in ("workers", "target_return", "total_timesteps"):
        if getattr(config, name) is not None:
            flags[name] = getattr(config, name)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        runs = [pathlib.Path(folder) / f"seed{seed}" for seed in range(config.seeds)]
        for seed, run in enumerate(runs):
            rows.append(train(config.algorithm, {**flags, "seed": seed}, run))
            print(rows[-1], flush=True)
        _report(config, rows)
        if config.curves and config.write:
            name = f"{_name(config, rows)}_curves"
            machine.write_csv(name, [row for n, run in enumerate(runs) for row in curve(run, n)])
            path = machine.RESULTS / f"{name}.png"
            path.unlink(missing_ok=True)
            plot.plot(plot.Config(runs=tuple(map(str, runs)), output=str(path)))


def _name(config: Config, rows: list[dict[str, Any]]) -> str:
    """Name of the result file."""
    workers = rows[0]["workers"]
    name = f"solve_{config.algorithm}_{config.env.replace('/', '-')}"
    return name + (f"_{workers}" if workers else "")


def _report(config: Config, rows: list[dict[str, Any]]) -> None:
    """Prints median and spread, and writes the rows."""
    times = [row["wall_s"] for row in rows if row["solved"]]
    workers = rows[0]["workers"]
    label = f"{config.algorithm}, {config.env}" + (f", {workers} workers" if workers else "")
    print(f"{label}: {len(times)} of {len(rows)} seeds solved")
    if times:
        print(
            f"seconds from process start to its end: median {statistics.median(times):.1f}, "
            f"min {min(times):.1f}, max {max(times):.1f}"
        )
    if config.write:
        print(f"written: {machine.write_csv(_name(config, rows), rows)}")


if __name__ == "__main__":
    main()
