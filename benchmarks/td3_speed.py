"""TD3's steps per second beside Stable-Baselines3's, and where ours spends them.

    pip install stable-baselines3
    python benchmarks/td3_speed.py
    python benchmarks/td3_speed.py --env Pendulum-v1 --steps 2000 --visits 5

One environment, one update with every step, the same networks, batch and rates on both sides. Each
visit is a process of its own; warm-up is not counted. The sides alternate, both with one thread and
with as many as there are cores; each is judged by its faster median.
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

_WARM_UP = 500  # steps, of which the last have updates


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    env: str = "HalfCheetah-v5"
    """Environment id."""
    steps: int = 3_000
    """Steps of one visit."""
    batch_size: int = 256
    """Transitions in a batch."""
    hidden: tuple[int, ...] = (256, 256)
    """Sizes of the hidden layers."""
    visits: int = 3
    """How often each side is visited."""
    side: Literal["", "hogwild_rl", "stable_baselines3"] = ""
    """Only this side, once; what the script calls itself with."""
    threads: int = 0
    """Of that visit."""
    profile: bool = False
    """Write benchmarks/results/td3_profile.txt instead: each line's time (needs line_profiler)."""


def ours(config: Config) -> float:
    """Steps per second of hogwild_rl, from its own clock of the steps behind the warm-up."""
    steps: list[float] = []
    plain = td3.update

    def timed(learner: Any, batch: Any, settings: Any) -> bool:
        steps.append(time.perf_counter())
        return plain(learner, batch, settings)

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


def theirs(config: Config) -> float:
    """Steps per second of Stable-Baselines3, from the same clock at the same place."""
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


def visit(config: Config, side: str, threads: int) -> float:
    """One side, measured in a process of its own."""
    flags = ["--env", config.env, "--steps", str(config.steps), "--side", side]
    flags += ["--batch-size", str(config.batch_size), "--threads", str(threads)]
    flags += ["--hidden", *map(str, config.hidden)]
    # What `python -m hogwild_rl.td3` sets for itself; the other side's threads wait as they like.
    waiting = {"GOMP_SPINCOUNT": "100000"} if side == "hogwild_rl" else {}
    ended = subprocess.run(
        [sys.executable, __file__, *flags],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **waiting},
    )
    return float(ended.stdout.split()[-1])


def profile(config: Config) -> str:
    """What each line of a step costs. torch's own profiler keeps so much that memory runs cold."""
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
    """Visits both sides in turn, prints and writes the medians."""
    config = tyro.cli(Config, description=__doc__)
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.side:
        print({"hogwild_rl": ours, "stable_baselines3": theirs}[config.side](config))
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
            rates[cell].append(visit(config, *cell))
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
