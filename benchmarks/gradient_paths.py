"""Learning curves with gradients in closed form and by autograd, with the same settings and seeds.

    python benchmarks/gradient_paths.py
    python benchmarks/gradient_paths.py --envs Pendulum-v1 --seeds 10 --timesteps 100_000

A2C trains with either gradient on every seed, alternating. Reported are the mean returns of all
training episodes and of the last 100, each as interquartile mean over
seeds with a 95 % percentile bootstrap interval (Agarwal et al. 2021, arXiv:2108.13264).
"""

import dataclasses
import tempfile
from typing import Any
from unittest import mock

import machine
import numpy as np
import tyro

from hogwild_rl import a2c
from hogwild_rl.hogwild.counters import CounterWriter
from hogwild_rl.learn.closed_form import ClosedForm

RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison."""

    envs: tuple[str, ...] = ("CartPole-v1", "Acrobot-v1", "Pendulum-v1")
    """Environment ids."""
    seeds: int = 10
    """Number of seeds."""
    timesteps: int = 60_000
    """Steps of each run."""


def train(env: str, seed: int, steps: int, closed_form: bool) -> tuple[float, float]:
    """Mean return of all training episodes, and of the last 100."""
    returns: list[float] = []
    add_rollout = CounterWriter.add_rollout

    def recorded(self: CounterWriter, count: int, episodes: Any) -> None:
        returns.extend(value for value, _ in episodes)
        add_rollout(self, count, episodes)

    supported = ClosedForm.supports if closed_form else lambda _: False
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(ClosedForm, "supports", staticmethod(supported)),
        mock.patch.object(CounterWriter, "add_rollout", recorded),
    ):
        settings: dict[str, Any] = {"env": env, "seed": seed, "total_timesteps": steps}
        a2c.train(a2c.Config(run_dir=f"{folder}/run", quiet=True, **settings))
    return float(np.mean(returns)), float(np.mean(returns[-100:]))


def interval(scores: list[float]) -> tuple[float, float, float]:
    """Interquartile mean of the scores, and its 95 % bootstrap interval."""
    rng, values = np.random.default_rng(0), np.array(scores)
    samples = np.sort(rng.choice(values, (RESAMPLES, len(values))), axis=1)
    cut = len(values) // 4
    means = samples[:, cut : len(values) - cut].mean(1)
    return float(np.sort(values)[cut : len(values) - cut].mean()), *np.quantile(
        means, [0.025, 0.975]
    )


def main() -> None:
    """Trains all runs; prints and writes the scores."""
    config = tyro.cli(Config, description=__doc__)
    print(machine.describe())
    rows: list[dict[str, Any]] = []
    for env in config.envs:
        scores: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        for seed in range(config.seeds):
            for closed_form in (True, False):
                scores[closed_form].append(train(env, seed, config.timesteps, closed_form))
        for closed_form, values in scores.items():
            path = "closed form" if closed_form else "autograd"
            for name, column in zip(("all", "last 100"), zip(*values, strict=True), strict=True):
                mean, low, high = (round(each, 2) for each in interval(list(column)))
                rows.append({"env": env, "gradient": path, "score": name, "mean": mean})
                rows[-1] |= {"low": low, "high": high, "seeds": config.seeds}
                rows[-1]["steps"] = config.timesteps
                print(f"{env:14} {path:11} {name:8} {mean:9.2f} ({low:.2f} to {high:.2f})")
    print(f"written: {machine.write_csv('gradient_paths', rows)}")


if __name__ == "__main__":
    main()
