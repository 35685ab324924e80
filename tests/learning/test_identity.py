"""Tests of learning the identity: the correct action equals the observation."""

import copy
import functools
import pathlib
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import Space, spaces

from hogwild_rl import a2c, a3c, ddpg, ppo, td3
from hogwild_rl.runs.agent import Agent

LENGTH = 20


class Identity(gymnasium.Env[Any, Any]):
    """Observations are random elements of a space; the reward is 1 for an equal action.

    For a Box it is 1 − min(1, mean absolute error), otherwise the fraction of equal components.
    """

    def __init__(self, space: Space[Any]) -> None:
        self.observation_space, self.action_space = copy.deepcopy(space), copy.deepcopy(space)

    def _observe(self) -> Any:
        self._observation = self.observation_space.sample()
        return self._observation

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self._step = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self._step += 1
        if isinstance(self.action_space, spaces.Box):
            reward = 1 - min(1.0, float(np.abs(action - self._observation).mean()))
        else:
            reward = float(np.mean(action == self._observation))
        return self._observe(), reward, False, self._step == LENGTH, {}


SPACES: dict[str, Space[Any]] = {
    "discrete": spaces.Discrete(4),
    "discrete from -1": spaces.Discrete(4, start=-1),
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "multi-discrete": spaces.MultiDiscrete([2, 3, 3]),
    "multi-binary": spaces.MultiBinary(3),
}
# Mean return of the best constant policy, with a margin. Per step it is 1/4 for 4 actions,
# 1 − E|x| for a Box, (1/2 + 1/3 + 1/3) / 3 for the multi-discrete space, and 1/2 for bits.
CONSTANT = {
    "discrete": LENGTH * 0.35,
    "discrete from -1": LENGTH * 0.35,
    "box": LENGTH * 0.55,
    "multi-discrete": LENGTH * 0.48,
    "multi-binary": LENGTH * 0.58,
}
SOLVED = {name: LENGTH * (0.88 if name == "box" else 0.95) for name in SPACES}


def trained(algorithm: str, workers: int, name: str, folder: pathlib.Path) -> Agent:
    settings: dict[str, Any] = {
        "env": functools.partial(Identity, SPACES[name]),
        "run_dir": str(folder / "run"),
        "quiet": True,
        "total_timesteps": 20_000 if name == "box" else 10_000,
        "n_steps": 5,
        "gamma": 0.0,  # the next observation does not depend on the action
        "learning_rate": 7e-3,
        "ent_coef": 0.0,
        "log_std_init": -1.0,
    }
    if algorithm == "a3c":
        return a3c.train(a3c.Config(workers=workers, envs_per_worker=4, **settings))
    if algorithm == "ppo":
        settings |= {"n_steps": 8, "learning_rate": 2e-3, "num_envs": 8, "batch_size": 64}
        return ppo.train(ppo.Config(workers=workers, **settings))
    return a2c.train(a2c.Config(num_envs=8, vectorization="sync", **settings))


@pytest.mark.parametrize(("algorithm", "workers"), [("a3c", 2), ("a2c", 0), ("ppo", 0), ("ppo", 2)])
@pytest.mark.parametrize("name", SPACES)
def test_on_policy_learns_the_identity(
    algorithm: str, workers: int, name: str, tmp_path: pathlib.Path
) -> None:
    agent = trained(algorithm, workers, name, tmp_path)
    assert agent.evaluate(20, seed=1).mean() > SOLVED[name] > CONSTANT[name]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("program", [ddpg, td3], ids=["ddpg", "td3"])
def test_off_policy_learns_the_identity(program: Any, workers: int, tmp_path: pathlib.Path) -> None:
    config = program.Config(
        env=functools.partial(Identity, SPACES["box"]),
        workers=workers,
        total_timesteps=2_000,
        learning_starts=200,
        hidden=(64, 64),
        batch_size=64,
        gamma=0.0,
        run_dir=str(tmp_path / "run"),
        quiet=True,
    )
    agent = program.train(config)
    assert agent.evaluate(20, seed=1).mean() > SOLVED["box"] > CONSTANT["box"]


@pytest.mark.parametrize("name", SPACES)
def test_constant_and_random_policies_stay_below_the_bounds(name: str) -> None:
    env = Identity(SPACES[name])
    env.action_space.seed(5)
    constants = [env.action_space.sample() for _ in range(4)]
    if isinstance(env.action_space, spaces.Box):
        constants[0] = np.zeros(2, np.float32)  # the best constant
    for policy in (*constants, None):
        total = 0.0
        for episode in range(30):
            env.reset(seed=1 if episode == 0 else None)
            ended = False
            while not ended:
                action = env.action_space.sample() if policy is None else policy
                _, reward, _, ended, _ = env.step(action)
                total += reward
        assert total / 30 < CONSTANT[name]
