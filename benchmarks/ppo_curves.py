"""PPO compared with that of Stable-Baselines3: returns and speed with the same settings.

    python benchmarks/ppo_curves.py
    python benchmarks/ppo_curves.py --envs CartPole-v1 --seeds 3

Both train on every seed, alternating, in one process with one thread and environments that step in
turn. Observations and rewards are not normalized, the learning rate is constant. Rows of other
environments stay in the results. Reported are the mean returns of all training episodes and of the
last 100, each as interquartile mean over seeds with a 95 % percentile bootstrap interval, and steps
per second of training.
"""

import dataclasses
import json
import pathlib
import statistics
import sys
from typing import Any

import machine
import numpy as np
import peers
import tyro
from gradient_paths import interval

_COMMON = {"clip_range": 0.2, "vf_coef": 0.5, "max_grad_norm": 0.5}
# The settings of RL Baselines3 Zoo, without decay and normalization; on HalfCheetah-v5 the defaults
# of Stable-Baselines3.
SETTINGS: dict[str, dict[str, Any]] = {
    "CartPole-v1": {
        "total_timesteps": 51_200,
        "num_envs": 8,
        "n_steps": 32,
        "batch_size": 256,
        "epochs": 20,
        "learning_rate": 1e-3,
        "gamma": 0.98,
        "gae_lambda": 0.8,
        "ent_coef": 0.0,
    },
    "LunarLander-v3": {
        "total_timesteps": 147_456,
        "num_envs": 16,
        "n_steps": 1024,
        "batch_size": 64,
        "epochs": 4,
        "learning_rate": 3e-4,
        "gamma": 0.999,
        "gae_lambda": 0.98,
        "ent_coef": 0.01,
    },
    "HalfCheetah-v5": {
        "total_timesteps": 102_400,
        "num_envs": 1,
        "n_steps": 2048,
        "batch_size": 64,
        "epochs": 10,
        "learning_rate": 3e-4,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "ent_coef": 0.0,
    },
}
_LIMIT_S = 1800.0


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison."""

    envs: tuple[str, ...] = tuple(SETTINGS)
    """Environment ids."""
    seeds: int = 5
    """Number of seeds."""
    folder: str = peers.Config.folder
    """Folder of the virtual environments."""


def train(python: str, program: str, env: str, seed: int) -> dict[str, float]:
    """Trains once in a new process; returns steps_per_s and the mean returns."""
    settings = json.dumps({"env": env, "seed": seed, **_COMMON, **SETTINGS[env]})
    flags = ("-E",) if python != sys.executable else ()
    words = [python, *flags, str(peers.PROGRAMS / program), settings]
    output = peers.run(words, _LIMIT_S, OMP_NUM_THREADS="1")
    printed = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    returns = printed["returns"]
    return {
        "steps_per_s": round(printed["steps_per_s"], 1),
        "return_all": round(float(np.mean(returns)), 2),
        "return_last": round(float(np.mean(returns[-100:])), 2),
    }


def main() -> None:
    """Trains all runs; writes every run, prints intervals and ratios of speed."""
    config = tyro.cli(Config, description=__doc__)
    print(machine.describe(), flush=True)
    python = peers.install("sb3", pathlib.Path(config.folder).expanduser())
    if python is None:
        raise SystemExit(1)
    sides = {"sb3": (str(python), "sb3_ppo.py"), "hogwild_rl": (sys.executable, "own_ppo.py")}
    kept = [row for row in machine.read_csv("ppo_curves") if row["env"] not in config.envs]
    rows: list[dict[str, Any]] = [*kept]
    for env in config.envs:
        for seed in range(config.seeds):
            for side, words in sides.items():
                rows.append({"env": env, "side": side, "seed": seed, **train(*words, env, seed)})
                print(rows[-1], flush=True)
                machine.write_csv("ppo_curves", rows)
    for env in config.envs:
        rates: dict[str, list[float]] = {}
        for side in sides:
            runs = [row for row in rows if (row["env"], row["side"]) == (env, side)]
            rates[side] = [row["steps_per_s"] for row in runs]
            texts = [f"{statistics.median(rates[side]):,.0f} steps/s"]
            for name in ("return_all", "return_last"):
                mean, low, high = interval([row[name] for row in runs])
                texts.append(f"{name} {mean:.1f} ({low:.1f} to {high:.1f})")
            print(f"{env:14} {side:10} {', '.join(texts)}")
        ratios = [ours / theirs for theirs, ours in zip(*rates.values(), strict=True)]
        print(f"{env:14} hogwild_rl / sb3: {peers.spread(ratios)}")


if __name__ == "__main__":
    main()
