"""Environment steps per second of A3C, where its time goes, and how stale its gradients are.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --workers 1 2 4 8 16 --envs-per-worker 1 16 64 --seconds 5

Every cell trains CartPole-v1 with a 2×64 tanh network for some seconds; the first second, in which
the workers start, is not counted. Cells are visited in turn, `repeats` times; medians are reported.
"""

import contextlib
import csv
import dataclasses
import itertools
import os
import pathlib
import signal
import statistics
import tempfile
import threading
import time
from typing import Any

import machine
import tyro

from hogwild_rl import a3c


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    env: str = "CartPole-v1"
    """Environment id."""
    workers: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of workers."""
    envs_per_worker: tuple[int, ...] = (1, 16, 64)
    """Numbers of environments each worker steps together."""
    n_steps: int = 20
    """Steps between updates."""
    seconds: float = 4.0
    """Length of one measurement, about."""
    repeats: int = 3
    """How often each cell is visited."""
    write: bool = True
    """Write benchmarks/results/throughput.csv."""


def measure(config: Config, workers: int, envs_per_worker: int) -> dict[str, float]:
    """Trains for some seconds and reads the rates off the run's own log."""
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder) / "run"
        timer = threading.Timer(config.seconds + 1, _end_of_measurement)
        timer.start()
        with contextlib.suppress(KeyboardInterrupt):  # what the timer asks for
            a3c.train(
                a3c.Config(
                    env=config.env,
                    workers=workers,
                    envs_per_worker=envs_per_worker,
                    n_steps=config.n_steps,
                    total_timesteps=10**12,
                    run_dir=str(run),
                    quiet=True,
                )
            )
        with (run / "progress.csv").open() as file:
            rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    first, last = rows[0], rows[-1]
    spent_s = {p: last[f"{p}_s"] - first[f"{p}_s"] for p in ("env", "act", "learn", "share")}
    return {
        "steps_per_s": (last["steps"] - first["steps"]) / (last["time_s"] - first["time_s"]),
        "updates_per_s": (last["updates"] - first["updates"]) / (last["time_s"] - first["time_s"]),
        "staleness_mean": last["staleness_mean"],
        "staleness_max": last["staleness_max"],
        **{f"{p}_share": s / sum(spent_s.values()) for p, s in spent_s.items()},
    }


def _end_of_measurement() -> None:
    """Ends the run as Ctrl-C would."""
    os.kill(os.getpid(), signal.SIGINT)


def main() -> None:
    """Visits all cells in turn, prints and writes the medians."""
    config = tyro.cli(Config, description=__doc__)
    print(machine.describe())
    cells = list(itertools.product(config.workers, config.envs_per_worker))
    measured: dict[tuple[int, int], list[dict[str, float]]] = {cell: [] for cell in cells}
    start_s = time.monotonic()
    for _ in range(config.repeats):
        for cell in cells:
            measured[cell].append(measure(config, *cell))
    rows: list[dict[str, Any]] = []
    for (workers, envs), runs in measured.items():
        medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        rates = [run["steps_per_s"] for run in runs]
        rows.append(
            {
                "env": config.env,
                "workers": workers,
                "envs_per_worker": envs,
                "n_steps": config.n_steps,
                "steps_per_s_min": round(min(rates)),
                "steps_per_s_max": round(max(rates)),
                **{name: round(value, 3) for name, value in medians.items()},
            }
        )
        print(
            f"{workers:3} workers x {envs:3} environments: "
            f"{medians['steps_per_s']:9,.0f} steps/s ({min(rates):,.0f} to {max(rates):,.0f}), "
            f"{medians['updates_per_s']:7,.0f} updates/s; "
            f"env {medians['env_share']:.0%}, act {medians['act_share']:.0%}, "
            f"learn {medians['learn_share']:.0%}, pull and step {medians['share_share']:.0%}; "
            f"staleness {medians['staleness_mean']:.1f}, at most {medians['staleness_max']:.0f}"
        )
    print(f"{config.repeats} visits of {config.seconds:g} s, {time.monotonic() - start_s:.0f} s")
    if config.write:
        print(f"written: {machine.write_csv('throughput', rows)}")


if __name__ == "__main__":
    main()
