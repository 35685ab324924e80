"""Speed of TD3 compared with Stable-Baselines3, and a line profile of this package's TD3.

    pip install stable-baselines3
    python benchmarks/td3_speed.py
    python benchmarks/td3_speed.py --env Pendulum-v1 --steps 2000 --visits 5

One environment, one update per step, the same networks, batch size and learning rates for both
libraries. Each measurement runs in its own process; the warm-up is not counted. Measurements
alternate between the libraries, with one thread and with one thread per core; the faster median of
each library is compared.
"""

import dataclasses
import io
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, Literal

import machine
import torch
import tyro

from hogwild_rl import td3
from hogwild_rl.collect.replay import ReplayBuffer
from hogwild_rl.collect.transitions import TransitionCollector
from hogwild_rl.config.base import usable_cores
from hogwild_rl.training.off_policy import OffPolicyLearner, ReplayCollector, TargetedModule

_WARM_UP = 500  # steps, the second half with updates


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the measurement."""

    env: str = "HalfCheetah-v5"
    """Environment id."""
    steps: int = 3_000
    """Steps of one measurement."""
    batch_size: int = 256
    """Transitions per minibatch."""
    hidden: tuple[int, ...] = (256, 256)
    """Sizes of the hidden layers."""
    visits: int = 3
    """Measurements of each library and number of threads."""
    side: Literal["", "hogwild_rl", "stable_baselines3"] = ""
    """Measure only this library, once; the script passes this to its own processes."""
    threads: int = 0
    """Number of threads of that measurement."""
    profile: bool = False
    """Write a line profile to benchmarks/results/td3_profile.txt instead; needs line_profiler."""


def hogwild_rl_rate(config: Config) -> float:
    """Steps per second of hogwild_rl after the warm-up."""
    steps: list[float] = []
    update = td3.update

    def timed(learner: Any, batch: Any, settings: Any) -> bool:
        steps.append(time.perf_counter())
        return update(learner, batch, settings)

    with tempfile.TemporaryDirectory() as folder:
        td3.update = timed
        td3.train(_settings(config, f"{folder}/run"))
    counted = steps[-config.steps :]
    return (len(counted) - 1) / (counted[-1] - counted[0])


def _settings(config: Config, run_dir: str) -> td3.Config:
    return td3.Config(
        env=config.env,
        total_timesteps=config.steps + _WARM_UP,
        batch_size=config.batch_size,
        hidden=config.hidden,
        learning_starts=_WARM_UP // 2,
        learning_rate=1e-3,
        device="cpu",
        quiet=True,
        run_dir=run_dir,
    )


def stable_baselines3_rate(config: Config) -> float:
    """Steps per second of Stable-Baselines3 after the warm-up."""
    import numpy as np
    import stable_baselines3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.noise import NormalActionNoise

    steps: list[float] = []

    class Clock(BaseCallback):
        def _on_step(self) -> bool:
            steps.append(time.perf_counter())
            return True

    model = stable_baselines3.TD3("MlpPolicy", config.env, device="cpu")
    A = model.action_space.shape[0]
    model = stable_baselines3.TD3(
        "MlpPolicy",
        config.env,
        learning_rate=1e-3,
        batch_size=config.batch_size,
        learning_starts=_WARM_UP // 2,
        train_freq=1,
        gradient_steps=1,
        action_noise=NormalActionNoise(np.zeros(A), np.full(A, 0.1)),
        policy_kwargs={"net_arch": list(config.hidden)},
        device="cpu",
    )
    model.learn(config.steps + _WARM_UP, callback=Clock())
    counted = steps[-config.steps :]
    return (len(counted) - 1) / (counted[-1] - counted[0])


def measure(config: Config, side: str, threads: int) -> float:
    """Steps per second of one library, measured in a new process."""
    flags = ["--env", config.env, "--steps", str(config.steps), "--side", side]
    flags += ["--batch-size", str(config.batch_size), "--threads", str(threads)]
    flags += ["--hidden", *map(str, config.hidden)]
    # As set by `python -m hogwild_rl.td3`; Stable-Baselines3 keeps the default.
    variables = {"GOMP_SPINCOUNT": "100000"} if side == "hogwild_rl" else {}
    done = subprocess.run(
        [sys.executable, __file__, *flags],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **variables},
    )
    return float(done.stdout.split()[-1])


def profile(config: Config) -> str:
    """Line profile of a step. torch's profiler stores so many events that caches are evicted."""
    from line_profiler import LineProfiler

    profiler, text = LineProfiler(), io.StringIO()
    for function in (
        ReplayCollector.collect,
        OffPolicyLearner.step,
        TransitionCollector.step,
        ReplayBuffer.sample,
        td3.update,
        TargetedModule.step,
    ):
        profiler.add_function(function)
    with tempfile.TemporaryDirectory() as folder, profiler:
        td3.train(_settings(config, f"{folder}/run"))
    profiler.print_stats(text, output_unit=1e-6, stripzeros=True)
    return text.getvalue().replace(f"{pathlib.Path(__file__).parents[1]}/", "")


def main() -> None:
    """Measures both libraries alternately; prints and writes the medians."""
    config = tyro.cli(Config, description=__doc__)
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.side:
        rate = hogwild_rl_rate if config.side == "hogwild_rl" else stable_baselines3_rate
        print(rate(config))
        return
    print(machine.describe())
    if config.profile:
        path = machine.RESULTS / "td3_profile.txt"
        path.write_text(f"{machine.describe()}\n{config}\n{profile(config)}\n")
        print(f"written: {path}")
        return
    cells = [(s, t) for t in {1, usable_cores()} for s in ("hogwild_rl", "stable_baselines3")]
    rates: dict[tuple[str, int], list[float]] = {cell: [] for cell in cells}
    for _ in range(config.visits):
        for cell in cells:
            rates[cell].append(measure(config, *cell))
            print(*cell, f"{rates[cell][-1]:.0f} steps/s", flush=True)
    rows = [
        {
            "env": config.env,
            "side": side,
            "threads": threads,
            "steps_per_s": round(statistics.median(values), 1),
            "least": round(min(values), 1),
            "most": round(max(values), 1),
        }
        for (side, threads), values in rates.items()
    ]
    best = {
        side: max(statistics.median(v) for (s, _), v in rates.items() if s == side)
        for side, _ in cells
    }
    ratio = best["hogwild_rl"] / best["stable_baselines3"]
    print(f"{best}: {ratio:.2f} times")
    print(f"written: {machine.write_csv(f'td3_speed_{config.env}', rows)}")


if __name__ == "__main__":
    main()
