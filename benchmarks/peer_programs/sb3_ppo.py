"""PPO of Stable-Baselines3 with the settings of ppo_curves.py, with one torch thread."""

# mypy: disable-error-code="import-not-found, misc"
import json
import sys
import time

import torch
from measurement import report
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env


class Episodes(BaseCallback):
    """Callback that records the returns of training episodes."""

    def __init__(self) -> None:
        super().__init__()
        self.returns: list[float] = []

    def _on_step(self) -> bool:
        self.returns += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        return True


def main() -> None:
    """Trains once."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    env, steps, num_envs = (settings.pop(name) for name in ("env", "total_timesteps", "num_envs"))
    settings["n_epochs"] = settings.pop("epochs")
    envs = make_vec_env(env, n_envs=num_envs, seed=settings["seed"])
    model, episodes = PPO("MlpPolicy", envs, device="cpu", **settings), Episodes()
    start_s = time.perf_counter()
    model.learn(steps, callback=episodes)
    seconds = time.perf_counter() - start_s
    packages = ("stable-baselines3", "torch", "gymnasium", "numpy")
    rate = model.num_timesteps / seconds
    report(*packages, steps_per_s=rate, returns=episodes.returns)


if __name__ == "__main__":
    main()
