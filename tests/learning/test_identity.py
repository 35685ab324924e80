"""The observation is the right action: the least that any kind of action must be learnt from."""

import copy
import functools
import pathlib
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import Space, spaces

from hogwild_rl import a2c, a3c, ddpg, td3
from hogwild_rl.runs.agent import Agent

LENGTH = 20


class Identity(gymnasium.Env[Any, Any]):
    """Shows a random member of a space for a step, and pays up to 1 for giving it back.

    For a Box what is off is taken from 1, at most 1; otherwise the share of right choices is paid.
    """

    def __init__(self, space: Space[Any]) -> None:
        self.observation_space, self.action_space = copy.deepcopy(space), copy.deepcopy(space)

    def _show(self) -> Any:
        self._shown = self.observation_space.sample()
        return self._shown

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self._step = 0
        return self._show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self._step += 1
        if isinstance(self.action_space, spaces.Box):
            reward = 1 - min(1.0, float(np.abs(action - self._shown).mean()))
        else:
            reward = float(np.mean(action == self._shown))
        return self._show(), reward, False, self._step == LENGTH, {}


SPACES: dict[str, Space[Any]] = {
    "discrete": spaces.Discrete(4),
    "discrete from -1": spaces.Discrete(4, start=-1),
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "multi-discrete": spaces.MultiDiscrete([2, 3, 3]),
    "multi-binary": spaces.MultiBinary(3),
}
# Of LENGTH, the mean return of the best policy that does not look, with a little for luck: one of
# four; 1 - E|x| for a Box; (1/2 + 1/3 + 1/3) / 3; and half of all bits.
BLIND = {
    "discrete": LENGTH * 0.35,
    "discrete from -1": LENGTH * 0.35,
    "box": LENGTH * 0.55,
    "multi-discrete": LENGTH * 0.48,
    "multi-binary": LENGTH * 0.58,
}
ENOUGH = {name: LENGTH * (0.88 if name == "box" else 0.95) for name in SPACES}


def trained(algorithm: str, name: str, folder: pathlib.Path) -> Agent:
    settings: dict[str, Any] = {
        "env": functools.partial(Identity, SPACES[name]),
        "run_dir": str(folder / "run"),
        "quiet": True,
        "total_timesteps": 20_000 if name == "box" else 10_000,
        "n_steps": 5,
        "gamma": 0.0,  # what is shown next does not depend on what is done
        "learning_rate": 7e-3,
        "ent_coef": 0.0,
        "log_std_init": -1.0,
    }
    if algorithm == "a3c":
        return a3c.train(a3c.Config(workers=2, envs_per_worker=4, **settings))
    return a2c.train(a2c.Config(num_envs=8, vectorization="sync", **settings))


@pytest.mark.parametrize("algorithm", ["a3c", "a2c"])
@pytest.mark.parametrize("name", SPACES)
def test_identity_is_learnt(algorithm: str, name: str, tmp_path: pathlib.Path) -> None:
    agent = trained(algorithm, name, tmp_path)
    assert agent.evaluate(20, seed=1).mean() > ENOUGH[name] > BLIND[name]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("program", [ddpg, td3], ids=["ddpg", "td3"])
def test_identity_is_learnt_from_a_replay(
    program: Any, workers: int, tmp_path: pathlib.Path
) -> None:
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
    assert agent.evaluate(20, seed=1).mean() > ENOUGH["box"] > BLIND["box"]


@pytest.mark.parametrize("name", SPACES)
def test_a_policy_that_does_not_look_stays_below(name: str) -> None:
    """Constant and random ones, so that the bounds above mean something."""
    env = Identity(SPACES[name])
    env.action_space.seed(5)
    constants = [env.action_space.sample() for _ in range(4)]
    if isinstance(env.action_space, spaces.Box):
        constants[0] = np.zeros(2, np.float32)  # the best of them
    for policy in (*constants, None):
        paid = 0.0
        for episode in range(30):
            env.reset(seed=1 if episode == 0 else None)
            ended = False
            while not ended:
                action = env.action_space.sample() if policy is None else policy
                _, reward, _, ended, _ = env.step(action)
                paid += reward
        assert paid / 30 < BLIND[name]
