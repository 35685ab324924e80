"""Tests of presets: environments per worker, and learning rates scaled with the batch."""

import math
from typing import Any

import pytest
import torch

from hogwild_rl import a2c, a3c, ddpg, reinforce, td3
from hogwild_rl.config import cli, presets
from tests import mdp


@pytest.mark.parametrize(("workers", "envs"), [(1, 128), (2, 64), (16, 8), (128, 1), (500, 1)])
def test_the_environments_of_a_preset_are_divided_among_workers(workers: int, envs: int) -> None:
    assert a3c.Config(env="CartPole-v1", workers=workers).envs_per_worker == envs


def test_the_learning_rate_decreases_with_the_batch_and_has_a_maximum() -> None:
    rates = [a3c.Config(env="CartPole-v1", workers=w).learning_rate for w in (1, 2, 8, 32)]
    assert rates[0] == rates[1]
    assert rates[2] == pytest.approx(rates[1] * math.sqrt(2 / 8))
    assert rates[3] == pytest.approx(rates[1] * math.sqrt(2 / 32))


def test_explicit_envs_per_worker_scales_the_learning_rate() -> None:
    preset = a3c.Config(env="CartPole-v1", workers=16).learning_rate
    explicit = a3c.Config(env="CartPole-v1", workers=2, envs_per_worker=8).learning_rate
    assert explicit == preset


def test_an_explicit_learning_rate_is_not_scaled() -> None:
    assert a3c.Config(env="CartPole-v1", workers=16, learning_rate=0.1).learning_rate == 0.1


@pytest.mark.parametrize("env", [*presets.ENVIRONMENTS, "Unknown-v0"])
@pytest.mark.parametrize("program", [a3c, a2c])
def test_unset_settings_come_from_the_preset(program: Any, env: str) -> None:
    algorithm = program.__name__.rpartition(".")[2]
    given = {"workers": 2} if program is a3c else {"device": "cpu"}
    preset = presets.settings(algorithm, env, given)
    config = program.Config(env=env, **given)
    assert len(preset) == 1 if env == "Unknown-v0" else len(preset) > 5
    for name, value in preset.items():
        assert getattr(config, name) == value, name


@pytest.mark.parametrize("program", [ddpg, td3])
@pytest.mark.parametrize(
    "env",
    ["Pendulum-v1", "MountainCarContinuous-v0", "LunarLanderContinuous-v3", "HalfCheetah-v5"],
)
def test_every_off_policy_preset_is_a_valid_config(program: Any, env: str) -> None:
    assert program.Config(env=env).learning_rate == 1e-3


def test_td3_s_lunar_lander_preset_has_a_larger_gamma_than_ddpg_s() -> None:
    env = "LunarLanderContinuous-v3"
    assert td3.Config(env=env).gamma > ddpg.Config(env=env).gamma


@pytest.mark.parametrize("gpu", [False, True])
def test_atari_presets_have_more_environments_on_a_gpu(gpu: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    game = "PongNoFrameskip-v4"
    found = a2c.Config(env=game)
    assert (found.num_envs, found.n_steps) == ((256, 5) if gpu else (16, 20))
    on_cpu = cli.parse(a2c.Config, "a2c", "", ["--env", game, "--device", "cpu"])
    assert (on_cpu.num_envs, on_cpu.n_steps) == (16, 20)
    assert a3c.Config(env=game, workers=2).n_steps == 20
    assert a2c.Config(env="CartPole-v1").num_envs == 128
    fewer = a2c.Config(env=game, num_envs=64)
    if gpu:
        assert fewer.learning_rate == pytest.approx(found.learning_rate / 2)


def test_a2c_runs_all_environments_and_scales_the_learning_rate_with_them() -> None:
    whole, half = (a2c.Config(env="CartPole-v1", **n) for n in ({}, {"num_envs": 64}))
    assert whole.num_envs == 128
    assert half.learning_rate == pytest.approx(whole.learning_rate * math.sqrt(1 / 2))


@pytest.mark.parametrize("env", ["ALE/Pong-v5", "PongNoFrameskip-v4", "ALE/MsPacman-v5"])
def test_every_atari_game_has_the_atari_preset(env: str) -> None:
    config = a3c.Config(env=env, workers=2)
    assert (config.clip_rewards, config.envs_per_worker) == ("sign", 8)
    assert a2c.Config(env=env).precision == "bfloat16"


def test_acrobot_s_preset_has_an_entropy_gradient_if_all_returns_are_equal() -> None:
    """With equal returns the mean baseline makes REINFORCE's advantages 0."""
    model, equal = mdp.model(), mdp.rollout([mdp.episodes()[0]] * 8)

    def has_gradient(**given: float) -> bool:
        config = reinforce.Config(env="Acrobot-v1", **given)
        loss = reinforce.episode_loss(model, equal, config).total
        (gradient,) = torch.autograd.grad(loss, [model.policy_head.logits.weight])
        return bool(gradient.abs().max() > 1e-4)

    assert has_gradient()
    assert not has_gradient(ent_coef=0.0)
