"""Tests of LSTM policies on a task that needs memory: recall a cue at the end of an episode."""

import pathlib
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from hogwild_rl import a2c, a3c
from hogwild_rl.models.layers import LSTMCore
from hogwild_rl.runs.agent import Agent

pytestmark = pytest.mark.long

BLANKS = 20
LENGTH = BLANKS + 2


class Recall(gymnasium.Env[Any, Any]):
    """The cue −1 or 1, then BLANKS zeros, then a query: reward 1 for the cue's action, else −1."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = spaces.Discrete(2)

    def _observe(self) -> Any:
        cue = 2 * self.cue - 1 if self._step == 0 else 0
        return np.array([cue, self._step == LENGTH - 1], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.cue, self._step = int(self.np_random.integers(2)), 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._step += 1
        if self._step == LENGTH:
            self._step -= 1
            return self._observe(), 1.0 if action == self.cue else -1.0, True, False, {}
        return self._observe(), 0.0, False, False, {}


def trained(algorithm: str, folder: pathlib.Path, **more: Any) -> Agent:
    settings: dict[str, Any] = {
        "env": Recall,
        "run_dir": str(folder / "run"),
        "quiet": True,
        "total_timesteps": 80_000,
        "n_steps": 2 * (LENGTH + 1),  # whole episodes and the steps that reset
        "learning_rate": 3e-3,
        "rms_eps": 1e-8,
        "lr_schedule": "constant",
        "gae_lambda": 0.0,  # otherwise the last reward is credited to all actions
        "ent_coef": 0.0,
        "hidden": (),
        **more,
    }
    if algorithm == "a3c":
        return a3c.train(
            a3c.Config(
                workers=2,
                envs_per_worker=8,
                **{**settings, "total_timesteps": 2 * settings["total_timesteps"]},
            )
        )
    return a2c.train(a2c.Config(num_envs=8, vectorization="sync", **settings))


@pytest.mark.parametrize("algorithm", ["a3c", "a2c"])
def test_an_lstm_policy_solves_the_task(algorithm: str, tmp_path: pathlib.Path) -> None:
    agent = trained(algorithm, tmp_path, lstm=16)
    assert agent.evaluate(60).tolist() == [1.0] * 60


@pytest.mark.parametrize("algorithm", ["a3c", "a2c"])
def test_a_policy_without_memory_stays_at_chance(algorithm: str, tmp_path: pathlib.Path) -> None:
    """The observation at the query is the same for both cues."""
    queries = []
    for cue in (0, 1):
        env = Recall()
        env.reset(seed=0)
        env.cue = cue
        queries.append([env.step(0)[0] for _ in range(LENGTH - 1)][-1].tolist())
    assert queries[0] == queries[1] == [0, 1]
    agent = trained(algorithm, tmp_path, total_timesteps=10_000, hidden=(16,))
    for deterministic in (True, False):
        returns = agent.evaluate(300, deterministic=deterministic, seed=2)
        assert set(returns.tolist()) == {-1.0, 1.0}  # both cues occur
        assert abs(returns.mean()) < 0.25  # 4.3 standard errors of 300 coin flips


def test_lstm_cells_decay_with_time_constants_from_2_to_32_steps() -> None:
    """After 10 steps without input cell i is (1 − 1 / T_i)^10, T = 2, ..., 32."""
    lstm = LSTMCore(2, 4, torch.Generator().manual_seed(0))
    with torch.no_grad():
        lstm.cell.weight_hh.zero_()
        state = torch.ones(2, 1, 4)
        for _ in range(10):
            state = lstm.step(torch.zeros(1, 2), state)
    expected = (1 - 1 / torch.tensor([2.0, 12.0, 22.0, 32.0])) ** 10
    torch.testing.assert_close(state[1, 0], expected)
