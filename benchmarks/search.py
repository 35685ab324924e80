"""Random search for a preset of A3C, ranked by how surely and fast settings solve.

    python benchmarks/search.py --env LunarLander-v3 --trials 30 --seeds 2 --finalists 4

Every trial runs `seeds` seeds; the finalists are run again with `final_seeds` fresh ones, so that a
lucky draw does not become a preset. All trials are written to benchmarks/results/search_*.csv.
"""

import dataclasses
import itertools
import random
import statistics
from collections.abc import Mapping
from typing import Any

import machine
import tyro
from solve import solve

from hogwild_rl import a3c

_WORKERS = 2

# Small, well shaped tasks.
_GRID: dict[str, list[Any]] = {
    "workers": [_WORKERS],
    "envs_per_worker": [8, 16, 32, 64],
    "n_steps": [8, 16, 32],
    "learning_rate": [1e-3, 2e-3, 3e-3, 5e-3, 7e-3],
    "gamma": [0.98, 0.99, 0.995],
    "gae_lambda": [0.9, 0.95, 1.0],
    "ent_coef": [0.0, 0.001, 0.01],
}
# Long episodes with rewards of a hundred: long rollouts, scaled rewards, and an ε that does not
# swallow the policy's share of a clipped gradient.
_LONG_GRID: dict[str, list[Any]] = {
    "workers": [_WORKERS],
    "envs_per_worker": [8, 16, 32],
    "n_steps": [64, 128, 256],
    "learning_rate": [1e-3, 2e-3, 3e-3, 5e-3],
    "gamma": [0.99, 0.995, 0.999],
    "gae_lambda": [0.95, 0.98, 1.0],
    "ent_coef": [0.001, 0.003, 0.01],
    "reward_scale": [0.03, 0.1],
    "max_grad_norm": [0.5, 2.0],
    "rms_eps": [1e-10, 1e-8],
}
# Rewards that say nothing for a long time: only with observations in units of their own deviation
# does it arrive by chance.
_SPARSE_GRID: dict[str, list[Any]] = {
    "workers": [_WORKERS],
    "envs_per_worker": [8, 16, 32],
    "n_steps": [16, 32, 64],
    "learning_rate": [1e-3, 2e-3, 4e-3, 8e-3],
    "gamma": [0.99, 0.995, 0.999],
    "gae_lambda": [0.9, 0.95, 0.98],
    "ent_coef": [0.0, 0.003, 0.01],
    "rms_eps": [1e-10, 1e-5],
    "normalize_observations": [True],
    "normalize_rewards": [True],
}
# Continuous actions: as above, and how widely they spread at first.
_CONTINUOUS_GRID: dict[str, list[Any]] = {
    "workers": [_WORKERS],
    "envs_per_worker": [4, 8, 16],
    "n_steps": [8, 16, 32],
    "learning_rate": [5e-4, 1e-3, 2e-3],
    "gamma": [0.99],
    "gae_lambda": [0.9, 0.95],
    "ent_coef": [0.0],
    "rms_eps": [1e-10],
    "log_std_init": [-1.0, -0.5, 0.0],
    "activation": ["tanh", "relu"],
    "normalize_observations": [True],
    "normalize_rewards": [True],
}
_SHORT_SIGHTED = {
    **_CONTINUOUS_GRID,
    "learning_rate": [1e-3, 2e-3, 4e-3],
    "gamma": [0.9, 0.95],
}
# The flag is 100 steps away and every push costs: only wide and lasting pushes find it.
_PUSHING_GRID = {
    **_CONTINUOUS_GRID,
    "n_steps": [32, 64, 128],
    "learning_rate": [1e-3, 2e-3, 4e-3],
    "gamma": [0.99, 0.999],
    "ent_coef": [0.0, 0.003],
    "log_std_init": [0.0, 0.5, 1.0],
}
GRIDS = {
    "LunarLander-v3": _LONG_GRID,
    "MountainCar-v0": _SPARSE_GRID,
    "Pendulum-v1": _SHORT_SIGHTED,
    "MountainCarContinuous-v0": _PUSHING_GRID,
    **dict.fromkeys(
        ("BipedalWalker-v3", "HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5"),
        _CONTINUOUS_GRID,
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to search."""

    env: str
    """Environment id."""
    total_timesteps: int = 2_000_000
    """Budget of one run."""
    target_return: float | None = None
    """Mean return that counts as solved; the registered one without it."""
    trials: int = 30
    """Settings drawn."""
    seeds: int = 1
    """Runs per trial."""
    finalists: int = 4
    """Settings that are run again."""
    final_seeds: int = 3
    """Fresh seeds for each finalist."""
    draw: int = 0
    """Seed of the draws."""


def trial(config: Config, stage: str, flags: dict[str, Any], seeds: range) -> dict[str, Any]:
    """Runs one setting with several seeds and adds them up."""
    fixed: dict[str, Any] = {"env": config.env, "total_timesteps": config.total_timesteps}
    if config.target_return is not None:
        fixed["target_return"] = config.target_return
    runs = [solve("a3c", {**fixed, **flags, "seed": seed}) for seed in seeds]
    row = {
        "stage": stage,
        "solved": sum(run["solved"] for run in runs),
        "runs": len(runs),
        "wall_s": statistics.median(run["wall_s"] for run in runs),
        "steps": statistics.median(run["steps"] for run in runs),
        "return_mean": statistics.mean(run["return_mean"] for run in runs),
        **flags,
    }
    print(row, flush=True)
    return row


def standing(config: Config, grid: Mapping[str, Any]) -> dict[str, Any]:
    """The preset there is, in the grid's settings: it takes part, so that only better ones win."""
    preset = a3c.Config(env=config.env, workers=_WORKERS)
    return {flag: getattr(preset, flag) for flag in grid}


def rank(row: dict[str, Any]) -> tuple[float, float, float]:
    """Sorts the most surely solving first, then the fastest, then the best return."""
    unsolved = row["runs"] - row["solved"]
    return unsolved, row["wall_s"] if not unsolved else 0, -row["return_mean"]


def main() -> None:
    """Draws, runs, ranks, runs the finalists again, writes all of it."""
    config = tyro.cli(Config, description=__doc__)
    print(machine.describe())
    draw, grid = random.Random(config.draw), GRIDS.get(config.env, _GRID)
    name = f"search_a3c_{config.env.replace('/', '-')}"
    drawn = (
        {flag: draw.choice(values) for flag, values in grid.items()} for _ in range(config.trials)
    )
    rows = []
    for flags in itertools.chain([standing(config, grid)], drawn):
        rows.append(trial(config, "draw", flags, range(config.seeds)))
        machine.write_csv(name, rows)
    rows.sort(key=rank)
    fresh = range(100, 100 + config.final_seeds)
    finals: list[dict[str, Any]] = []
    for row in rows[: config.finalists]:
        finals.append(trial(config, "final", {flag: row[flag] for flag in grid}, fresh))
        finals.sort(key=rank)
        written = machine.write_csv(name, finals + rows)
    print(f"best: {finals[0]}\nwritten: {written}")


if __name__ == "__main__":
    main()
