"""Evaluation of a preset: greedy returns after training for its whole budget, on several seeds.

    python benchmarks/score.py --env Pendulum-v1 --seeds 3
    python benchmarks/score.py --env HalfCheetah-v5 --algorithm a2c

Each seed trains in its own process. Its final parameters are then evaluated over whole episodes
with greedy actions. The learning curves are written to benchmarks/results/score_*_curves.csv.
"""

import dataclasses
import pathlib
import statistics
import tempfile
from typing import Any

import machine
import tyro
from solve import curve, train

import hogwild_rl


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the evaluation."""

    env: str
    """Environment id."""
    algorithm: str = "a3c"
    """Module of hogwild_rl."""
    seeds: int = 3
    """Number of seeds: 0, 1, 2, ..."""
    episodes: int = 100
    """Evaluation episodes of each agent."""
    total_timesteps: int | None = None
    """Steps of one run; default: the preset's."""
    write: bool = True
    """Write benchmarks/results/score_*.csv."""


def main() -> None:
    """Trains and evaluates every seed; prints and writes the scores."""
    config = tyro.cli(Config, description=__doc__)
    print(machine.describe())
    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    for seed in range(config.seeds):
        flags: dict[str, Any] = {"env": config.env, "seed": seed}
        if config.total_timesteps is not None:
            flags["total_timesteps"] = config.total_timesteps
        with tempfile.TemporaryDirectory() as folder:
            run = pathlib.Path(folder) / "run"
            trained = train(config.algorithm, flags, run)
            returns = hogwild_rl.load(run).evaluate(config.episodes, seed=1_000 + seed)
            curves += curve(run, seed)
        columns = ("env", "workers", "envs_per_worker", "seed", "steps", "train_s", "return_mean")
        rows.append(
            {
                **{name: trained[name] for name in columns},
                "score": round(float(returns.mean()), 1),
                "score_std": round(float(returns.std()), 1),
            }
        )
        print(rows[-1], flush=True)
    scores = [row["score"] for row in rows]
    print(
        f"{config.algorithm}, {config.env}, {rows[0]['steps']:,} steps: greedy mean over "
        f"{config.episodes} episodes, median of seeds {statistics.median(scores):.1f}, "
        f"min {min(scores):.1f}, max {max(scores):.1f}"
    )
    if config.write:
        name = f"score_{config.algorithm}_{config.env.replace('/', '-')}"
        machine.write_csv(f"{name}_curves", curves)
        print(f"written: {machine.write_csv(name, rows)}")


if __name__ == "__main__":
    main()
