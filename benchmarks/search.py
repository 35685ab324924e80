"""Random search for a preset of A3C, ranked by seeds solved and time to solution.

    python benchmarks/search.py --env LunarLander-v3 --trials 30 --seeds 2 --finalists 4

Every trial trains on `seeds` seeds. The best trials are repeated on `final_seeds` new seeds, so
that none is selected by chance. All trials are written to benchmarks/results/search_*.csv.
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

# Small tasks with dense rewards.
_GRID: dict[str, list[Any]] = {
    "workers": [_WORKERS],
    "envs_per_worker": [8, 16, 32, 64],
    "n_steps": [8, 16, 32],
    "learning_rate": [1e-3, 2e-3, 3e-3, 5e-3, 7e-3],
    "gamma": [0.98, 0.99, 0.995],
    "gae_lambda": [0.9, 0.95, 1.0],
    "ent_coef": [0.0, 0.001, 0.01],
}
# Long episodes with rewards of up to ±100: long rollouts, scaled rewards, and an ε that is small
# compared with the policy's part of a clipped gradient.
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
# Sparse rewards: random exploration reaches the goal only with standardized observations.
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
# Continuous actions: as above, with the initial standard deviation.
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
_LOW_GAMMA_GRID = {
    **_CONTINUOUS_GRID,
    "learning_rate": [1e-3, 2e-3, 4e-3],
    "gamma": [0.9, 0.95],
}
# The goal is 100 steps away and actions cost reward: exploration needs a large deviation.
_EXPLORATION_GRID = {
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
    "Pendulum-v1": _LOW_GAMMA_GRID,
    "MountainCarContinuous-v0": _EXPLORATION_GRID,
    **dict.fromkeys(
        ("BipedalWalker-v3", "HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5"),
        _CONTINUOUS_GRID,
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the search."""

    env: str
    """Environment id."""
    total_timesteps: int = 2_000_000
    """Steps of one run."""
    target_return: float | None = None
    """Mean return that counts as solved; default: the registered threshold."""
    trials: int = 30
    """Number of sampled settings."""
    seeds: int = 1
    """Seeds per trial."""
    finalists: int = 4
    """Number of best trials that are repeated on new seeds."""
    final_seeds: int = 3
    """New seeds for each finalist."""
    search_seed: int = 0
    """Seed of the sampled settings."""


def trial(config: Config, stage: str, flags: dict[str, Any], seeds: range) -> dict[str, Any]:
    """Trains one setting on several seeds and returns the totals and medians."""
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


def current_preset(config: Config, grid: Mapping[str, Any]) -> dict[str, Any]:
    """Current preset restricted to the settings of the grid; it is a trial too."""
    preset = a3c.Config(env=config.env, workers=_WORKERS)
    return {flag: getattr(preset, flag) for flag in grid}


def rank(row: dict[str, Any]) -> tuple[float, float, float]:
    """Sort key: fewest unsolved seeds, then shortest time, then highest return."""
    unsolved = row["runs"] - row["solved"]
    return unsolved, row["wall_s"] if not unsolved else 0, -row["return_mean"]


def main() -> None:
    """Samples, runs and ranks the trials, repeats the finalists, and writes all rows."""
    config = tyro.cli(Config, description=__doc__)
    print(machine.describe())
    rng, grid = random.Random(config.search_seed), GRIDS.get(config.env, _GRID)
    name = f"search_a3c_{config.env.replace('/', '-')}"
    sampled = (
        {flag: rng.choice(values) for flag, values in grid.items()} for _ in range(config.trials)
    )
    rows = []
    for flags in itertools.chain([current_preset(config, grid)], sampled):
        rows.append(trial(config, "draw", flags, range(config.seeds)))
        machine.write_csv(name, rows)
    rows.sort(key=rank)
    final_seeds = range(100, 100 + config.final_seeds)
    finals: list[dict[str, Any]] = []
    for row in rows[: config.finalists]:
        finals.append(trial(config, "final", {flag: row[flag] for flag in grid}, final_seeds))
        finals.sort(key=rank)
        written = machine.write_csv(name, finals + rows)
    print(f"best: {finals[0]}\nwritten: {written}")


if __name__ == "__main__":
    main()
