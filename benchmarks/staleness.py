"""Corrections of stale gradients: learning curves of A3C by correction, delay and workers.

    python benchmarks/staleness.py --hours 1.5
    python benchmarks/staleness.py --table

First, every correction trains on CartPole-v1 with several learning rates and values of its own
setting, on few seeds, with artificial delays of 0 and 16 gradients. Then it trains with its best
values, the highest mean area under the curve over both delays, on new seeds, delays, environments
and 16 workers. On HalfCheetah-v5 these are only `ignore` and the two best corrections of
LunarLander-v3 with 16 workers.

Each row of benchmarks/results/staleness.csv is one run; runs that are in the file are skipped, so
an interrupted measurement goes on. The area under the curve is the mean over all steps of the mean
return of the last 100 episodes; steps to the threshold are those until it reaches the registered
one. Reported are interquartile means over seeds with 95 % bootstrap intervals (Agarwal et al. 2021,
arXiv:2108.13264), stratified by delay where several are pooled.
"""

import dataclasses
import functools
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import machine
import numpy as np
import tqdm
import tyro
from scipy import stats

from hogwild_rl import a3c, plot
from hogwild_rl.runs import logger

# Values of the corrections' own settings; the first one if there is a single value.
SETTINGS: dict[str, dict[str, Sequence[float]]] = {
    "ignore": {},
    "compensate": {"staleness_lambda": (0.5, 2.0, 8.0)},
    "late-pull": {},
    "v-trace": {},
    "delay-adaptive": {},
    "inverse": {},
    "drop": {"staleness_bound": (16, 64)},
    "accumulate": {"accumulate": (2, 4)},
}
FACTORS = (0.5, 1.0, 2.0)  # of the learning rate below
# Corrections that lower the learning rate themselves need a larger one.
MORE_FACTORS = {"delay-adaptive": (4.0,), "inverse": (4.0, 8.0)}
_FIRST_SEED = 100  # of the final runs


@dataclasses.dataclass(frozen=True)
class Task:
    """Environment and the settings that all corrections share."""

    env: str
    steps: int
    learning_rate: float
    envs_per_worker: int
    steps_per_s: float  # for the estimate of the duration


CARTPOLE = Task("CartPole-v1", 300_000, 5e-3, 8, 60_000)
LANDER = Task("LunarLander-v3", 600_000, 5e-3, 8, 15_000)
LANDER_16 = dataclasses.replace(LANDER, envs_per_worker=1, learning_rate=5e-3 / math.sqrt(8))
CHEETAH_16 = Task("HalfCheetah-v5", 500_000, 1e-3 / math.sqrt(8), 1, 8_000)


class Condition(NamedTuple):
    """Number of workers and artificial delay of their gradients."""

    workers: int
    delay: int

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"{self.workers} workers" + (f", delay {self.delay}" if self.delay else "")


SWEEP = (Condition(2, 0), Condition(2, 16))
FINAL: tuple[tuple[Task, int, tuple[Condition, ...]], ...] = (
    (CARTPOLE, 20, (*(Condition(2, k) for k in (0, 4, 16, 64, 256)), Condition(16, 0))),
    (LANDER, 5, tuple(Condition(2, k) for k in (0, 16, 64))),
    (LANDER_16, 5, (Condition(16, 0),)),
)
CHEETAH_SEEDS, CHEETAH_CONDITION = 3, Condition(16, 0)


class Trial(NamedTuple):
    """One run: its stage, task, condition, correction with its settings, and seed."""

    stage: str
    task: Task
    condition: Condition
    correction: str
    factor: float
    value: float  # of the correction's own setting, 0 if it has none
    seed: int

    @property
    def key(self) -> tuple[str, ...]:
        """The same for the same run of a file."""
        return tuple(map(str, self.columns().values()))

    def columns(self) -> dict[str, Any]:
        """Columns that identify the run."""
        task, (workers, delay) = self.task, self.condition
        columns = {"stage": self.stage, "env": task.env, "workers": workers, "delay": delay}
        columns |= {"correction": self.correction, "factor": float(self.factor)}
        return {**columns, "value": float(self.value), "seed": self.seed}

    def settings(self) -> dict[str, Any]:
        """Settings of A3C."""
        task, own = self.task, {}
        for name in SETTINGS[self.correction]:
            own[name] = self.value if name == "staleness_lambda" else int(self.value)
        return {
            "env": task.env,
            "total_timesteps": task.steps,
            "workers": self.condition.workers,
            "envs_per_worker": task.envs_per_worker,
            "learning_rate": task.learning_rate * self.factor,
            "lr_schedule": "constant",
            "artificial_delay": self.condition.delay,
            "staleness": self.correction,
            "seed": self.seed,
            **own,
        }


def run(trial: Trial) -> dict[str, Any]:
    """Trains once; returns a row of the results."""
    curve: list[logger.Snapshot] = []
    take_snapshot, start_s = logger.take_snapshot, time.perf_counter()

    def recorded(*args: Any) -> logger.Snapshot:
        curve.append(take_snapshot(*args))
        return curve[-1]

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(logger, "take_snapshot", recorded),
    ):
        a3c.train(a3c.Config(run_dir=f"{folder}/run", quiet=True, **trial.settings()))
    steps, returns = np.array(
        [(each.steps, each.return_mean) for each in curve if not math.isnan(each.return_mean)]
    ).T
    steps, returns = np.concatenate(([0], steps)), np.concatenate((returns[:1], returns))
    area = float(np.trapezoid(returns, steps) / steps[-1])
    target = plot.threshold(trial.task.env) or math.inf
    solved = (
        each.steps
        for each in curve
        if each.episodes >= logger.EPISODES_AVERAGED and each.return_mean >= target
    )
    return {
        **trial.columns(),
        "area": round(area, 2),
        "solved_steps": next(solved, ""),
        "return_mean": round(float(returns[-1]), 2),
        "staleness": round(curve[-1].staleness_mean, 2),
        "dropped": curve[-1].dropped,
        "seconds": round(time.perf_counter() - start_s, 1),
    }


class Results:
    """Rows of all runs, in memory and in benchmarks/results/staleness.csv."""

    def __init__(self) -> None:
        self.rows = machine.read_csv("staleness")
        names = list(Trial("", CARTPOLE, SWEEP[0], "ignore", 1, 0, 0).columns())
        self._done = {tuple(row[name] for name in names) for row in self.rows}

    def missing(self, trials: Sequence[Trial]) -> list[Trial]:
        """Trials that are not in the results, by seed, so that a part of them is balanced."""
        return sorted((t for t in trials if t.key not in self._done), key=lambda t: t.seed)

    def add(self, trial: Trial, row: dict[str, Any]) -> None:
        """Adds the result of a run to the file."""
        self.rows.append({name: str(value) for name, value in row.items()})
        self._done.add(trial.key)
        machine.write_csv("staleness", self.rows)

    def select(self, **columns: Any) -> list[dict[str, Any]]:
        """Rows with these values."""
        wanted = {name: str(value) for name, value in columns.items()}
        return [row for row in self.rows if wanted.items() <= row.items()]

    def best(self, correction: str) -> tuple[float, float]:
        """Factor of the learning rate and value of the setting with the highest mean area."""
        groups: dict[tuple[float, float], list[float]] = {}
        for row in self.select(stage="sweep", correction=correction):
            setting = float(row["factor"]), float(row["value"])
            groups.setdefault(setting, []).append(float(row["area"]))
        return max(groups, key=lambda setting: statistics.mean(groups[setting]))


def sweep_trials(seeds: int) -> Iterator[Trial]:
    """Runs of the sweep."""
    for correction, own in SETTINGS.items():
        values = next(iter(own.values()), (0.0,))
        factors = FACTORS + MORE_FACTORS.get(correction, ())
        settings = itertools.product(SWEEP, factors, values, range(seeds))
        for condition, factor, value, seed in settings:
            yield Trial("sweep", CARTPOLE, condition, correction, factor, value, seed)


def final_trials(results: Results) -> Iterator[Trial]:
    """Runs of the comparison, without HalfCheetah-v5."""
    best = {correction: results.best(correction) for correction in SETTINGS}
    for task, seeds, conditions in FINAL:
        for condition, seed in itertools.product(conditions, range(seeds)):
            for correction, setting in best.items():
                yield Trial("final", task, condition, correction, *setting, _FIRST_SEED + seed)


def cheetah_trials(results: Results) -> Iterator[Trial]:
    """Runs on HalfCheetah-v5 of `ignore` and the two best corrections of LunarLander-v3."""
    areas = {
        correction: interquartile_mean(
            _column(
                results.select(stage="final", env=LANDER.env, workers=16, correction=correction)
            )
        )
        for correction in SETTINGS
        if correction != "ignore"
    }
    chosen = ["ignore", *sorted(areas, key=areas.__getitem__)[-2:]]
    seeds = range(_FIRST_SEED, _FIRST_SEED + CHEETAH_SEEDS)
    for correction, seed in itertools.product(chosen, seeds):
        setting = results.best(correction)
        yield Trial("final", CHEETAH_16, CHEETAH_CONDITION, correction, *setting, seed)


def _column(rows: Sequence[dict[str, Any]], name: str = "area") -> list[float]:
    """Values of a column; infinity where it is empty."""
    return [float(row[name]) if row[name] else math.inf for row in rows]


def interquartile_mean(*strata: Any, axis: int = -1) -> Any:
    """Mean of the middle half of all values."""
    return stats.trim_mean(np.concatenate(strata, axis=axis), 0.25, axis=axis)


def interval(strata: Sequence[Sequence[float]]) -> str:
    """Interquartile mean of all values and its 95 % bootstrap interval, stratified."""
    mean = float(interquartile_mean(*map(np.array, strata)))
    if min(map(len, strata)) < 2:
        return f"{mean:,.0f}"
    found = stats.bootstrap(
        strata,
        interquartile_mean,
        n_resamples=2_000,
        method="percentile",
        vectorized=True,
        random_state=0,
    ).confidence_interval
    return f"{mean:,.0f} ({found.low:,.0f} to {found.high:,.0f})"


def print_sweep(results: Results) -> None:
    """Prints the best settings of the sweep."""
    print("\nsweep on CartPole-v1, area under the curve, mean and range over seeds")
    print("\n| correction | learning rate | setting | delay 0 | delay 16 |\n|---|---|---|---|---|")
    for correction, own in SETTINGS.items():
        if results.select(stage="sweep", correction=correction):
            factor, value = results.best(correction)
            setting = "".join(f"{name} {value:g}" for name in own)
            select = functools.partial(
                results.select, stage="sweep", correction=correction, factor=factor, value=value
            )
            areas = [_column(select(delay=condition.delay)) for condition in SWEEP]
            texts = [f"{statistics.mean(a):.0f} ({min(a):.0f} to {max(a):.0f})" for a in areas]
            rate = f"{CARTPOLE.learning_rate * factor:g}"
            print(f"| {correction} | {rate} | {setting} | {' | '.join(texts)} |")


def print_comparison(results: Results, env: str, conditions: Sequence[Condition]) -> None:
    """Prints the final runs of an environment."""
    print(f"\n{env}, area under the curve; seeds that reach the threshold, median steps")
    names = [condition.name for condition in conditions]
    print(f"\n| correction | {' | '.join(names)} | delays pooled |")
    print("|---" * (len(names) + 2) + "|")
    for correction in SETTINGS:
        select = functools.partial(results.select, stage="final", env=env, correction=correction)
        groups = [select(workers=c.workers, delay=c.delay) for c in conditions]
        if not any(groups):
            continue
        delayed = [
            _column(rows)
            for rows, condition in zip(groups, conditions, strict=True)
            if rows and condition.workers == 2
        ]
        pooled = interval(delayed) if len(delayed) > 1 else ""
        cells = [_cell(rows) for rows in groups]
        print(f"| {correction} | {' | '.join(cells)} | {pooled} |")


def _conditions() -> dict[str, list[Condition]]:
    """Conditions of the comparison by environment."""
    found: dict[str, list[Condition]] = {CHEETAH_16.env: [CHEETAH_CONDITION]}
    for task, _, conditions in FINAL:
        found.setdefault(task.env, []).extend(conditions)
    return found


def _cell(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return ""
    steps = _column(rows, "solved_steps")
    solved = [each for each in steps if each < math.inf]
    median = statistics.median(steps)
    reached = f"; {len(solved)} of {len(rows)}"
    reached += f", {median / 1_000:,.0f} k" if median < math.inf else ""
    return interval([_column(rows)]) + (reached if solved else "")


def draw(results: Results) -> str:
    """Draws the area under the curve by delay on CartPole-v1; returns the file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    delays = [c.delay for c in FINAL[0][2] if c.workers == 2]
    for correction in SETTINGS:
        select = functools.partial(
            results.select, stage="final", env=CARTPOLE.env, workers=2, correction=correction
        )
        points = [(i, _column(select(delay=delay))) for i, delay in enumerate(delays)]
        means = [(i, interquartile_mean(np.array(areas))) for i, areas in points if areas]
        axes.plot(*zip(*means, strict=True), marker="o", label=correction)
    axes.set_xticks(range(len(delays)), map(str, delays))
    axes.set(xlabel="artificial delay, gradients", ylabel="area under the curve, CartPole-v1")
    axes.legend(fontsize=8, ncols=2)
    path = machine.RESULTS / "staleness.png"
    figure.savefig(path, dpi=120)
    return str(path)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the measurement."""

    hours: float = 6.0
    """End after this time; run again to go on."""
    sweep_seeds: int = 3
    """Seeds of the sweep."""
    table: bool = False
    """Only print the tables of the committed results and draw the figure."""


def main() -> None:
    """Runs what is missing; prints the tables and draws the figure."""
    config = tyro.cli(Config, description=__doc__)
    results, end_s = Results(), time.monotonic() + 3600 * config.hours
    print(machine.describe())
    stages: tuple[Callable[[], Iterator[Trial]], ...] = (
        lambda: sweep_trials(config.sweep_seeds),
        lambda: final_trials(results),
        lambda: cheetah_trials(results),
    )
    for stage in stages:
        trials = [] if config.table else results.missing(list(stage()))
        seconds = sum(each.task.steps / each.task.steps_per_s + 1 for each in trials)
        if trials:
            print(f"{len(trials)} runs, estimated {seconds / 3600:.1f} h")
        for trial in tqdm.tqdm(trials, disable=not trials):
            if time.monotonic() > end_s:
                break
            results.add(trial, run(trial))
        if results.missing(trials):
            break
    print_sweep(results)
    for env, conditions in _conditions().items():
        if results.select(stage="final", env=env):
            print_comparison(results, env, conditions)
    if results.select(stage="final", env=CARTPOLE.env):
        print(f"\nwritten: {draw(results)}")


if __name__ == "__main__":
    main()
