"""Tests that A3C solves small problems with known solutions."""

import pathlib

import pytest
import torch

from hogwild_rl import a3c
from tests import envs


def train(env, folder: pathlib.Path, **more):
    settings = {"workers": 2, "envs_per_worker": 4, "n_steps": 8, "learning_rate": 3e-3, **more}
    raw = {"normalize_rewards": False, "normalize_observations": False}  # values are compared
    return a3c.train(a3c.Config(env=env, run_dir=str(folder), **raw, **settings))


def test_a3c_finds_the_optimum_of_a_chain(tmp_path: pathlib.Path) -> None:
    agent = train(envs.Chain, tmp_path / "run", total_timesteps=40_000, ent_coef=0.02)
    assert agent.evaluate(10).tolist() == [1.0] * 10


def test_a_time_limit_does_not_lower_the_value(tmp_path: pathlib.Path) -> None:
    gamma = 0.9
    agent = train(
        envs.truncated_clock, tmp_path / "run", total_timesteps=60_000, gamma=gamma,
        lr_schedule="linear",
    )  # fmt: skip
    observation, _ = envs.truncated_clock().reset()
    _, values = agent.model(torch.as_tensor(observation).expand(2, 1, -1))
    assert values[0].item() == pytest.approx(1 / (1 - gamma), rel=0.03)


def test_the_value_before_a_termination_is_the_finite_sum(tmp_path: pathlib.Path) -> None:
    gamma = 0.9
    agent = train(
        envs.terminated_clock, tmp_path / "run", total_timesteps=60_000, gamma=gamma,
        lr_schedule="linear",
    )  # fmt: skip
    states = torch.eye(envs.Clock.length + 1)[: envs.Clock.length]
    _, values = agent.model(states.unsqueeze(1))
    remaining = torch.arange(envs.Clock.length, 0, -1)
    torch.testing.assert_close(
        values.squeeze(1), (1 - gamma**remaining) / (1 - gamma), rtol=0.05, atol=0.1
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_preset_solves_cartpole(tmp_path: pathlib.Path, seed: int) -> None:
    agent = a3c.train(a3c.Config(seed=seed, run_dir=str(tmp_path / "run")))
    assert agent.evaluate(20).mean() >= 475
