"""A2C of Stable-Baselines3 on CartPole-v1, with one torch thread."""

# mypy: disable-error-code="import-not-found, misc"
import time

import gymnasium
import numpy as np
import torch
from measurement import SOLVED_EPISODES, SOLVED_RETURN, RateMeter, arguments, report
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

_PACKAGES = ("stable-baselines3", "torch", "gymnasium", "numpy")
_UNLIMITED = 10**12


class Measure(BaseCallback):
    """Callback that ends training when the measurement is complete."""

    def __init__(self, meter: RateMeter) -> None:
        super().__init__()
        self.meter = meter

    def _on_step(self) -> bool:
        return not self.meter.finished(self.num_timesteps)


class StopWhenSolved(BaseCallback):
    """Callback that ends training when the mean return of the last episodes is high enough."""

    def _on_step(self) -> bool:
        returns = [episode["r"] for episode in self.model.ep_info_buffer]
        return len(returns) < SOLVED_EPISODES or float(np.mean(returns)) < SOLVED_RETURN


def throughput(seconds: float, seed: int) -> float:
    """Steps per second with 64 environments and rollouts of 5 steps.

    The environments have no Monitor, which records returns.
    """
    envs = DummyVecEnv([lambda: gymnasium.make("CartPole-v1")] * 64)
    model = A2C("MlpPolicy", envs, n_steps=5, seed=seed, device="cpu")
    meter = RateMeter(seconds)
    model.learn(_UNLIMITED, callback=Measure(meter))
    return meter.per_s


def solve(seed: int) -> float:
    """Trains until solved; returns the time, in seconds since the epoch."""
    envs = make_vec_env("CartPole-v1", n_envs=32, seed=seed)
    model = A2C(
        "MlpPolicy",
        envs,
        learning_rate=1e-3,
        stats_window_size=SOLVED_EPISODES,
        seed=seed,
        device="cpu",
    )
    model.learn(_UNLIMITED, callback=StopWhenSolved())
    return time.time()


def main() -> None:
    """Runs one task."""
    args = arguments(__doc__, "envs64", "solve")
    torch.set_num_threads(1)
    if args.task == "solve":
        report(*_PACKAGES, solved_at=solve(args.seed))
    else:
        report(*_PACKAGES, steps_per_s=throughput(args.seconds, args.seed))


if __name__ == "__main__":
    main()
