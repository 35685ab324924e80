"""Generic defaults: returns with and without reward normalization, rescaled actions and entropy.

    python benchmarks/defaults.py --processes 2
    python benchmarks/defaults.py --table

A2C trains on environments without presets, also with rewards of other scales. Each row of
benchmarks/results/defaults.csv is one run: mean return of its last 100 training episodes and of 20
greedy episodes, both in units of the unscaled rewards. Runs that are in the file are skipped.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import multiprocessing
import statistics
import tempfile
import time
from typing import Any

import gymnasium
import machine
import numpy as np
import tqdm
import tyro
from gymnasium import spaces

from hogwild_rl import a2c

# Settings beside the library's defaults at the time of the measurement, which were BEFORE.
BEFORE: dict[str, Any] = {
    "normalize_rewards": False,
    "normalize_observations": False,
    "rescale_actions": False,
    "ent_coef": 0.01,
}
_REWARDS = BEFORE | {"normalize_rewards": True}
_RESCALED = _REWARDS | {"rescale_actions": True}
_NO_BONUS = _RESCALED | {"ent_coef": 0.0}
DISCRETE = {
    "before": BEFORE,
    "rewards": _REWARDS,
    "rewards, observations": _REWARDS | {"normalize_observations": True},
}
CONTINUOUS = {
    "before": BEFORE,
    "rewards, rescaled": _RESCALED,
    "rewards, rescaled, no bonus": _NO_BONUS,
    "rewards, rescaled, no bonus, observations": _NO_BONUS | {"normalize_observations": True},
}
# Variants that became the defaults.
AFTER = {
    "discrete": "rewards, observations",
    "continuous": "rewards, rescaled, no bonus, observations",
}


@dataclasses.dataclass(frozen=True)
class Task:
    """Environment, factor of its rewards and number of steps."""

    env: str
    steps: int
    factor: float = 1.0

    @property
    def name(self) -> str:
        """Name in the results."""
        return self.env if self.factor == 1 else f"{self.env} × {self.factor:g}"


TASKS = (
    Task("CartPole-v1", 150_000),
    Task("CartPole-v1", 150_000, 100.0),
    Task("CartPole-v1", 150_000, 1e-4),
    Task("Acrobot-v1", 150_000),
    Task("LunarLander-v3", 200_000),
    Task("FrozenLake-v1", 100_000),
    Task("Pendulum-v1", 150_000),
    Task("MountainCarContinuous-v0", 100_000),
    Task("InvertedPendulum-v5", 150_000),
    Task("HalfCheetah-v5", 100_000),
    Task("Target", 100_000),
    Task("WideTarget", 100_000),
)


class Target(gymnasium.Env[Any, Any]):
    """Reward −((a − target) / range)² for 50 steps; observations are noise."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, low: float, high: float, target: float) -> None:
        self.action_space = spaces.Box(low, high, (1,), np.float32)
        self.target, self.range = target, high - low

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode."""
        super().reset(seed=seed, options=options)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Returns the reward of an action."""
        self.steps += 1
        reward = -(((float(action[0]) - self.target) / self.range) ** 2)
        return self._observe(), reward, False, self.steps >= 50, {}

    def _observe(self) -> Any:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)


class Scaled(gymnasium.RewardWrapper[Any, Any]):
    """Environment with rewards times a factor."""

    def __init__(self, env: gymnasium.Env[Any, Any], factor: float) -> None:
        super().__init__(env)
        self.factor = factor

    def reward(self, reward: Any) -> float:
        """Returns the scaled reward."""
        return float(reward) * self.factor


def make(task: Task) -> gymnasium.Env[Any, Any]:
    """Makes the environment of a task; as a function it has no preset."""
    if task.env == "Target":
        return Target(-1, 1, 0.5)
    if task.env == "WideTarget":
        return Target(0, 1000, 600)
    return Scaled(gymnasium.make(task.env), task.factor)


def variants(task: Task) -> dict[str, dict[str, Any]]:
    """Settings to compare on a task, by name."""
    env = make(task)
    env.close()
    return CONTINUOUS if isinstance(env.action_space, spaces.Box) else DISCRETE


def run(task: Task, variant: str, seed: int) -> dict[str, Any]:
    """Trains and evaluates once."""
    start_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        agent = a2c.train(
            a2c.Config(
                env=functools.partial(make, task),
                total_timesteps=task.steps,
                seed=seed,
                run_dir=f"{folder}/run",
                quiet=True,
                vectorization="sync",
                **variants(task)[variant],
            )
        )
    recent = agent.checkpoint.counters.recent_returns
    greedy = agent.evaluate(20, seed=1_000 + seed)
    std = agent.checkpoint.parameters.get("policy_head.log_std")
    return {
        "task": task.name,
        "variant": variant,
        "seed": seed,
        "steps": task.steps,
        "return_mean": round(float(np.mean(recent)) / task.factor, 4),
        "greedy": round(float(greedy.mean()) / task.factor, 4),
        "std": "" if std is None else round(float(std.exp().max()), 4),
        "seconds": round(time.perf_counter() - start_s, 1),
    }


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the measurement."""

    seeds: int = 5
    """Seeds of each task and variant."""
    processes: int = 1
    """Runs at a time."""
    table: bool = False
    """Only print the table of the committed results."""


def print_table(rows: list[dict[str, Any]]) -> None:
    """Prints medians over seeds: training return, greedy return, standard deviation σ."""
    for task, of_task in itertools.groupby(rows, key=lambda row: row["task"]):
        print(f"\n| {task} | seeds | return | min | greedy | σ |\n|---|---|---|---|---|---|")
        by_variant: dict[str, list[dict[str, Any]]] = {}
        for row in of_task:
            by_variant.setdefault(row["variant"], []).append(row)
        for variant, each in by_variant.items():
            returns, greedy, std = (
                [float(row[name]) for row in each if row[name] != ""]
                for name in ("return_mean", "greedy", "std")
            )
            sigma = f"{statistics.median(std):.3g}" if std else ""
            print(
                f"| {variant} | {len(each)} | {statistics.median(returns):.4g} | "
                f"{min(returns):.4g} | {statistics.median(greedy):.4g} | {sigma} |"
            )


def main() -> None:
    """Measures what is missing, writes the results and prints the table."""
    config = tyro.cli(Config, description=__doc__)
    rows: list[dict[str, Any]] = [*machine.read_csv("defaults")]
    measured = {(row["task"], row["variant"], int(row["seed"])) for row in rows}
    order = [task.name for task in TASKS]
    todo = [
        (task, variant, seed)
        for seed, task in itertools.product(range(config.seeds), TASKS)
        for variant in variants(task)
        if (task.name, variant, seed) not in measured and not config.table
    ]
    print(machine.describe())
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(config.processes, context) as pool:
        futures = [pool.submit(run, *each) for each in todo]
        for future in tqdm.tqdm(concurrent.futures.as_completed(futures), total=len(futures)):
            rows.append(future.result())
            rows.sort(key=lambda row: order.index(row["task"]))  # stable
            machine.write_csv("defaults", rows)
    print_table(rows)


if __name__ == "__main__":
    main()
