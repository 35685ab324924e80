"""Environment steps per second of training, where the time goes, and how stale gradients are.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --workers 1 2 4 8 16 --envs-per-worker 1 16 64 --seconds 5
    python benchmarks/throughput.py --algorithm a2c --num-envs 16 64 256 1024

Every cell trains CartPole-v1 with a 2×64 tanh network for some seconds; the first second, in which
the workers start, is not counted. A2C's cells stand beside the raw rate of the same environments
with random actions. Cells are visited in turn, `repeats` times; medians are reported.
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
from collections.abc import Mapping
from typing import Any, Literal

import machine
import tyro

from hogwild_rl import a2c, a3c
from hogwild_rl.envs import backends, vector
from hogwild_rl.runs.settings import usable_cores


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    env: str = "CartPole-v1"
    """Environment id."""
    algorithm: Literal["a3c", "a2c"] = "a3c"
    """What trains."""
    workers: tuple[int, ...] = (1, 2, 4, 8, 16)
    """A3C: numbers of workers."""
    envs_per_worker: tuple[int, ...] = (1, 16, 64)
    """A3C: numbers of environments each worker steps together."""
    num_envs: tuple[int, ...] = (16, 64, 256, 1024)
    """A2C: numbers of environments."""
    vectorization: backends.Vectorization = "auto"
    """A2C: what steps them."""
    n_steps: int = 20
    """Steps between updates."""
    seconds: float = 4.0
    """Length of one measurement, about."""
    repeats: int = 3
    """How often each cell is visited."""
    write: bool = True
    """Write benchmarks/results/throughput*.csv."""

    def cells(self) -> list[dict[str, Any]]:
        """The settings that differ from measurement to measurement."""
        if self.algorithm == "a2c":
            return [{"num_envs": n, "vectorization": self.vectorization} for n in self.num_envs]
        pairs = itertools.product(self.workers, self.envs_per_worker)
        return [{"workers": workers, "envs_per_worker": envs} for workers, envs in pairs]


def measure(config: Config, cell: Mapping[str, Any]) -> dict[str, float]:
    """Trains for some seconds and reads the rates off the run's own log."""
    program = {"a3c": a3c, "a2c": a2c}[config.algorithm]
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder) / "run"
        settings = program.Config(
            env=config.env,
            n_steps=config.n_steps,
            total_timesteps=10**12,
            run_dir=str(run),
            quiet=True,
            **cell,
        )
        timer = threading.Timer(config.seconds + 1, _end_of_measurement)
        timer.start()
        with contextlib.suppress(KeyboardInterrupt):  # what the timer asks for
            program.train(settings)
        with (run / "progress.csv").open() as file:
            rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    first, last = next(row for row in rows if row["time_s"] >= 1), rows[-1]
    spent_s = {p: last[f"{p}_s"] - first[f"{p}_s"] for p in ("env", "act", "learn", "share")}
    elapsed_s = last["time_s"] - first["time_s"]
    raw = {"raw_steps_per_s": raw_rate(config, cell)} if config.algorithm == "a2c" else {}
    return {
        "steps_per_s": (last["steps"] - first["steps"]) / elapsed_s,
        **raw,
        "updates_per_s": (last["updates"] - first["updates"]) / elapsed_s,
        "staleness_mean": last["staleness_mean"],
        "staleness_max": last["staleness_max"],
        **{f"{p}_share": s / sum(spent_s.values()) for p, s in spent_s.items()},
    }


def _end_of_measurement() -> None:
    """Ends the run as Ctrl-C would."""
    os.kill(os.getpid(), signal.SIGINT)


def raw_rate(config: Config, cell: Mapping[str, Any], seconds: float = 1.0) -> float:
    """Valid steps per second of the environments by themselves, with random actions."""
    spec, cores = vector.spec(config.env), usable_cores()
    backend = backends.choose(spec, cell["vectorization"], cell["num_envs"], cores)
    envs = backends.make(spec, backend, cell["num_envs"], cores)
    envs.reset(seed=0)
    envs.action_space.seed(0)
    actions = [envs.action_space.sample() for _ in range(64)]
    steps, resetting, start_s = 0, 0, time.perf_counter()
    for action in itertools.cycle(actions):
        _, _, terminated, truncated, _ = envs.step(action)
        steps += cell["num_envs"] - resetting
        resetting = int((terminated | truncated).sum())
        if time.perf_counter() - start_s > seconds:
            break
    rate = steps / (time.perf_counter() - start_s)
    envs.close()
    return rate


def main() -> None:
    """Visits all cells in turn, prints and writes the medians."""
    config = tyro.cli(Config, description=__doc__)
    print(machine.describe())
    cells, start_s = config.cells(), time.monotonic()
    measured: list[list[dict[str, float]]] = [[] for _ in cells]
    for _ in range(config.repeats):
        for cell, runs in zip(cells, measured, strict=True):
            runs.append(measure(config, cell))
    rows: list[dict[str, Any]] = []
    for cell, runs in zip(cells, measured, strict=True):
        medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        rates = [run["steps_per_s"] for run in runs]
        rows.append(
            {
                "env": config.env,
                **cell,
                "n_steps": config.n_steps,
                "steps_per_s_min": round(min(rates)),
                "steps_per_s_max": round(max(rates)),
                **{name: round(value, 3) for name, value in medians.items()},
            }
        )
        raw = medians.get("raw_steps_per_s")
        print(
            f"{', '.join(f'{name} {value}' for name, value in cell.items())}: "
            f"{medians['steps_per_s']:,.0f} steps/s ({min(rates):,.0f} to {max(rates):,.0f}), "
            + (f"raw {raw:,.0f}, " if raw else "")
            + f"{medians['updates_per_s']:,.0f} updates/s; "
            f"env {medians['env_share']:.0%}, act {medians['act_share']:.0%}, "
            f"learn {medians['learn_share']:.0%}, pull and step {medians['share_share']:.0%}; "
            f"staleness {medians['staleness_mean']:.1f}, at most {medians['staleness_max']:.0f}"
        )
    print(f"{config.repeats} visits of {config.seconds:g} s, {time.monotonic() - start_s:.0f} s")
    if config.write:
        name = "throughput" if config.algorithm == "a3c" else f"throughput_{config.algorithm}"
        print(f"written: {machine.write_csv(name, rows)}")


if __name__ == "__main__":
    main()
