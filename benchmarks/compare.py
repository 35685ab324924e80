"""Comparison of A3C and A2C with equal settings and seeds, each at its best learning rate.

    python benchmarks/compare.py --env CartPole-v1 --seeds 10
    python benchmarks/compare.py --env Acrobot-v1 --algorithms a3c --factors 0.5 1 --seeds 3

First, each algorithm trains with every learning rate of a sweep, given as factors of the preset's,
on a few seeds until solved. Then each trains with its best learning rate on new seeds over the
whole budget; the runs alternate between the algorithms. Solved means that the mean return of the
last 100 training episodes has reached the environment's registered threshold. Seconds are training
time, from before the first worker starts.
"""

import dataclasses
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import machine
import numpy as np
import solve
import tyro

from hogwild_rl import a3c, plot
from hogwild_rl.config import base

# Settings of A3C that all algorithms use, whatever their own presets are.
_NOT_SHARED = {"workers", "envs_per_worker", "learning_rate"}
_RUN_SETTINGS = {field.name for field in dataclasses.fields(base.RunConfig)}
SHARED = ["env", "total_timesteps"] + [
    field.name
    for field in dataclasses.fields(a3c.Config)
    if field.name not in _RUN_SETTINGS | _NOT_SHARED
]
_FIRST_SEED = 100


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison."""

    env: str = "CartPole-v1"
    """Environment id."""
    algorithms: tuple[str, ...] = ("a3c", "a2c")
    """Modules of hogwild_rl."""
    workers: int = 2
    """Number of A3C's worker processes."""
    envs_per_worker: int | None = None
    """A3C's environments per worker, A2C's have the same total; default: the preset's."""
    n_steps: int | None = None
    """Rollout length; default: the preset's."""
    total_timesteps: int | None = None
    """Steps of one run; default: the preset's."""
    factors: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    """Learning rates of the sweep as factors of A3C's preset; a single one: no sweep."""
    sweep_seeds: int = 3
    """Runs of each algorithm with each learning rate: seeds 0, 1, 2, ..."""
    seeds: int = 10
    """Runs of each algorithm in the comparison: seeds 100, 101, 102, ..."""
    device: str = "cpu"
    """Device of algorithms other than A3C."""

    def settings(self) -> a3c.Config:
        """Settings of A3C; the other algorithms use those in `SHARED`."""
        given = {
            name: value
            for name in ("envs_per_worker", "n_steps", "total_timesteps")
            if (value := getattr(self, name)) is not None
        }
        return a3c.Config(env=self.env, workers=self.workers, **given)


class Comparison:
    """Runs of all algorithms, one after another.

    Args:
        config: settings of the comparison.
        folder: parent of the runs' folders.

    Attributes:
        rows: results, one row per run, also written to benchmarks/results/compare_ENV.csv.
    """

    def __init__(self, config: Config, folder: pathlib.Path) -> None:
        self.name = f"compare_{config.env.replace('/', '-')}"
        self.rows: list[dict[str, Any]] = []
        self._config, self._folder = config, folder
        self._settings = config.settings()
        self._threshold = plot.threshold(config.env)

    def sweep(self) -> dict[str, float]:
        """Best factor of each algorithm: fewest unsolved seeds, then fewest steps, then return."""
        config = self._config
        if len(config.factors) == 1:
            return dict.fromkeys(config.algorithms, config.factors[0])
        for seed in range(config.sweep_seeds):
            for factor in config.factors:
                for algorithm in config.algorithms:
                    self._run("sweep", algorithm, factor, seed)
        best = {}
        for algorithm in config.algorithms:
            best[algorithm] = min(config.factors, key=lambda f: self._rank(algorithm, f))
            print(f"{algorithm}: best learning rate {self.learning_rate(best[algorithm]):g}")
            if best[algorithm] in (min(config.factors), max(config.factors)):
                print("  this is the edge of the sweep: extend the factors")
        return best

    def _rank(self, algorithm: str, factor: float) -> tuple[float, float, float]:
        key = (algorithm, factor)
        runs = [row for row in self.rows if (row["algorithm"], row["factor"]) == key]
        steps = [row["solved_steps"] for row in runs if row["solved"]]
        failed = len(runs) - len(steps)
        # Steps instead of seconds: the learning rate does not change the speed.
        to_threshold = 0 if failed else float(np.median(steps))
        return failed, to_threshold, -float(np.median([row["return_mean"] for row in runs]))

    def compare(self, factors: Mapping[str, float]) -> dict[str, list[plot.Curve]]:
        """Trains every algorithm on new seeds over the whole budget; returns learning curves."""
        curves: dict[str, list[plot.Curve]] = {algorithm: [] for algorithm in factors}
        for seed in range(_FIRST_SEED, _FIRST_SEED + self._config.seeds):
            for algorithm, factor in factors.items():
                run = self._run("compare", algorithm, factor, seed)
                curves[algorithm].append(plot.read(run).curve)
        return curves

    def learning_rate(self, factor: float) -> float:
        """Learning rate of a factor of the preset's."""
        return factor * self._settings.learning_rate

    def _run(self, stage: str, algorithm: str, factor: float, seed: int) -> pathlib.Path:
        run = self._folder / f"{stage}_{algorithm}_{factor}_{seed}"
        flags = {name: getattr(self._settings, name) for name in SHARED} | {
            "learning_rate": self.learning_rate(factor),
            "seed": seed,
            "stop_when_solved": stage == "sweep" and self._threshold is not None,
        }
        row = solve.train(algorithm, {**flags, **self._env_counts(algorithm)}, run)
        self.rows.append(
            {
                "stage": stage,
                "algorithm": algorithm,
                "factor": factor,
                "learning_rate": flags["learning_rate"],
                **row,
                "steps_per_s": round(row["steps"] / row["train_s"]),
            }
        )
        print(self.rows[-1], flush=True)
        machine.write_csv(self.name, self.rows)
        return run

    def _env_counts(self, algorithm: str) -> dict[str, Any]:
        workers, each = self._settings.workers, self._settings.envs_per_worker
        if algorithm == "a3c":
            return {"workers": workers, "envs_per_worker": each}
        return {"num_envs": workers * each, "device": self._config.device}


def report(rows: Sequence[Mapping[str, Any]], curves: Mapping[str, list[plot.Curve]]) -> None:
    """Prints rates, steps and seconds to the threshold, and returns during training."""
    for algorithm in curves:
        runs = [r for r in rows if (r["stage"], r["algorithm"]) == ("compare", algorithm)]
        solved = [run for run in runs if run["solved"]]
        rate = runs[0]["learning_rate"]
        print(f"{algorithm}, learning rate {rate:g}: {len(solved)} of {len(runs)} seeds solved")
        print(f"  steps/s: {spread([run['steps_per_s'] for run in runs])}")
        print(f"  return at the end: {spread([run['return_mean'] for run in runs])}")
        if solved:
            print(f"  steps to the threshold: {spread([run['solved_steps'] for run in solved])}")
            print(f"  seconds to the threshold: {spread([run['solved_s'] for run in solved])}")
    for x in plot.AXES:
        end = min(getattr(curve, x)[-1] for runs in curves.values() for curve in runs)
        points = np.linspace(0, end, 5)[1:]
        quartiles = {name: plot.quartiles(runs, x, points) for name, runs in curves.items()}
        for index, point in enumerate(points):
            values = {name: array[:, index] for name, array in quartiles.items()}
            print(f"return after {point:,.{0 if x == 'steps' else 1}f} {x}: ", end="")
            print(
                ", ".join(
                    f"{n} {m:.1f} ({low:.1f} to {up:.1f})" for n, (low, m, up) in values.items()
                )
            )


def spread(values: Sequence[float]) -> str:
    """Median, quartiles, minimum and maximum as text."""
    least, lower, median, upper, most = np.quantile(values, (0, 0.25, 0.5, 0.75, 1))
    digits = 0 if most >= 1000 else 1
    return (
        f"median {median:,.{digits}f}, quartiles {lower:,.{digits}f} to {upper:,.{digits}f}, "
        f"min {least:,.{digits}f}, max {most:,.{digits}f}"
    )


def main() -> None:
    """Sweeps and compares; prints and writes the results, learning curves and a plot."""
    config = tyro.cli(Config, description=__doc__)
    print(f"{machine.describe()}\n{config}\n{config.settings()}")
    with tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(config, pathlib.Path(folder))
        factors = comparison.sweep()
        curves = comparison.compare(factors)
    report(comparison.rows, curves)
    seeds = range(_FIRST_SEED, _FIRST_SEED + config.seeds)
    points = [
        {"algorithm": name, "seed": seed, "steps": int(steps), "seconds": seconds, "return": value}
        for name, runs in curves.items()
        for seed, curve in zip(seeds, runs, strict=True)
        for steps, seconds, value in zip(curve.steps, curve.seconds, curve.returns, strict=True)
    ]
    print(f"written: {machine.write_csv(f'{comparison.name}_curves', points)}")
    labeled_curves = {
        f"{name}, learning rate {comparison.learning_rate(factors[name]):g}": runs
        for name, runs in curves.items()
    }
    threshold = plot.threshold(config.env)
    path = machine.RESULTS / f"{comparison.name}.png"
    plot.save(labeled_curves, path, plot.AXES, [] if threshold is None else [threshold])
    print(f"written: {path}")


if __name__ == "__main__":
    main()
