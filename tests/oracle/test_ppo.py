"""Tests of PPO: objective and gradient against NumPy, minibatches, and its limit, A2C."""

import csv
import dataclasses
import pathlib
import types
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

import hogwild_rl
from hogwild_rl import a2c, ppo
from hogwild_rl.hogwild.shared_model import SharedModel
from hogwild_rl.learn import losses
from hogwild_rl.learn.closed_form import ClosedForm
from hogwild_rl.learn.samples import Minibatches, Samples
from hogwild_rl.models.actor_critic import ActorCritic, Architecture
from hogwild_rl.models.distributions import Categorical, Gaussian
from tests.oracle.test_closed_form import ACTIONS, random_model, random_rollout

N, A = 40, 3
SETTINGS: dict[str, Any] = {
    "clip_range": 0.2,
    "clip_value_range": 0.0,
    "normalize_advantages": False,
    "vf_coef": 0.5,
    "ent_coef": 0.01,
    "gamma": 0.9,
    "gae_lambda": 0.8,
}
VARIANTS = {
    "plain": {},
    "normalized": {"normalize_advantages": True},
    "clipped values": {"clip_value_range": 0.3},
    "narrow": {"clip_range": 0.02, "normalize_advantages": True, "clip_value_range": 0.1},
}


def config_of(**others: Any) -> Any:
    """Settings of the loss."""
    return types.SimpleNamespace(**{**SETTINGS, **others})


def random_samples(rng: np.random.Generator, actions: np.ndarray[Any, Any]) -> Samples:
    """Random samples [1, N] in float64; 1 of 5 is not valid."""
    names = ("log_probs", "values", "advantages", "targets")
    numbers = {name: torch.from_numpy(rng.normal(0, 1, (1, N))) for name in names}
    return Samples(
        observations=torch.zeros(1, N, 1),
        state=torch.zeros(2, N, 0),
        actions=torch.from_numpy(actions)[None],
        valid=torch.from_numpy(rng.random((1, N)) < 0.8),
        **numbers,
    )


def objective(
    log_probs: Any, entropies: Any, values: Any, samples: Samples, config: Any
) -> dict[str, Any]:
    """Loss and its derivatives by log π, H and V, [N] each, sample by sample in NumPy."""
    n = int(samples.valid.sum())
    old = {name: tensor[0].numpy() for name, tensor in vars(samples).items()}
    rows = np.flatnonzero(old["valid"])
    advantages = old["advantages"].copy()
    if config.normalize_advantages:
        chosen = advantages[rows]
        advantages = (advantages - chosen.mean()) / (chosen.std() + 1e-8)
    found: dict[str, Any] = {"loss": 0.0, "kl": 0.0, "clipped": 0.0}
    found |= {name: np.zeros(N) for name in ("by_log_prob", "by_entropy", "by_value")}
    for i in rows:
        ratio = np.exp(log_probs[i] - old["log_probs"][i])
        bounded = min(max(ratio, 1 - config.clip_range), 1 + config.clip_range)
        terms = ratio * advantages[i], bounded * advantages[i]
        found["loss"] -= min(terms) / n
        if terms[0] <= terms[1]:
            found["by_log_prob"][i] = -ratio * advantages[i] / n
        error, moved = values[i] - old["targets"][i], values[i] - old["values"][i]
        if config.clip_value_range:
            near = np.clip(moved, -config.clip_value_range, config.clip_value_range)
            limited = old["values"][i] + near - old["targets"][i]
            if limited**2 > error**2:
                error = limited
                moves = abs(moved) <= config.clip_value_range
            else:
                moves = True
        else:
            moves = True
        found["loss"] += config.vf_coef * error**2 / n
        found["by_value"][i] = moves * 2 * config.vf_coef * error / n
        found["loss"] -= config.ent_coef * entropies[i] / n
        found["by_entropy"][i] = -config.ent_coef / n
        found["kl"] += (ratio - 1 - np.log(ratio)) / n
        found["clipped"] += (abs(ratio - 1) > config.clip_range) / n
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_objective_and_gradient_equal_numpy(variant: str) -> None:
    rng = np.random.default_rng(3)
    config = config_of(**VARIANTS[variant])
    for _ in range(20):
        samples = random_samples(rng, rng.integers(0, A, N))
        logits, values = rng.normal(0, 1, (N, A)), rng.normal(0, 1, N)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        taken = samples.actions[0].numpy()
        old = np.log(p[np.arange(N), taken]) + rng.normal(0, 0.3, N)
        samples.log_probs.copy_(torch.from_numpy(old))
        entropy = -(p * np.log(p)).sum(1)
        log_probs = np.log(p[np.arange(N), taken])
        expected = objective(log_probs, entropy, values, samples, config)
        leaves = [torch.from_numpy(each)[None].requires_grad_() for each in (logits, values)]
        loss = losses.ppo_loss(
            lambda *_, leaves=leaves: (Categorical(leaves[0]), leaves[1]),  # type: ignore[arg-type]
            samples,
            config,
        )
        by_logits, by_values = torch.autograd.grad(loss.total, leaves)
        one_hot = np.eye(A)[taken] - p  # ∂ log π(a) / ∂ logits
        by_entropy = -p * (np.log(p) + entropy[:, None])  # ∂ H / ∂ logits
        gradient = expected["by_log_prob"][:, None] * one_hot
        gradient += expected["by_entropy"][:, None] * by_entropy
        np.testing.assert_allclose(float(loss.total.detach()), expected["loss"], rtol=1e-6)
        np.testing.assert_allclose(by_logits[0].numpy(), gradient, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(by_values[0].numpy(), expected["by_value"], rtol=1e-6)
        assert float(loss.kl) == pytest.approx(expected["kl"], rel=1e-6)
        assert float(loss.clipped) == pytest.approx(expected["clipped"], rel=1e-6)


def test_ratios_of_densities_are_clipped() -> None:
    """A Gaussian's density may exceed 1; the ratio of densities counts."""
    rng = np.random.default_rng(5)
    samples = random_samples(rng, rng.normal(0, 0.01, (N, 2)))
    mean, log_std = torch.zeros(1, N, 2, dtype=torch.float64), torch.full((2,), -4.0)
    policy = Gaussian(mean, log_std.double())
    samples.log_probs.copy_(policy.log_prob(samples.actions) - 1)  # all ratios are e
    loss = losses.ppo_loss(lambda *_: (policy, samples.values), samples, config_of())  # type: ignore[arg-type]
    bounded = torch.where(samples.advantages > 0, 1.2, np.e) * samples.advantages
    assert float(loss.policy) == pytest.approx(-float(bounded[samples.valid].mean()), rel=1e-6)
    assert float(loss.clipped) == 1


@pytest.mark.parametrize("name", ACTIONS)
def test_closed_form_equals_autograd(name: str) -> None:
    torch.manual_seed(11)
    rng = np.random.default_rng(11)
    for variant in VARIANTS.values():
        model, config = random_model(name, rng), config_of(**variant)
        samples = Samples.of(model, random_rollout(model, 12, 9, rng), config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.01)
        shared = SharedModel(model)
        expected = shared.gradient(losses.ppo_loss(model, samples, config).total).clone()
        found = ClosedForm(model, shared.gradient.flat).gradient(losses.ppo_loss, samples, config)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_large_rollouts_are_evaluated_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(14)
    rng = np.random.default_rng(14)
    model = random_model("categorical", rng)
    rollout = random_rollout(model, 11, 6, rng)
    whole = Samples.of(model, rollout, config_of())
    monkeypatch.setattr("hogwild_rl.learn.samples._AT_ONCE", 20)  # 3 of 11 rows
    for name, found in vars(Samples.of(model, rollout, config_of())).items():
        torch.testing.assert_close(found, getattr(whole, name), rtol=1e-5, atol=1e-5)


def test_rounding_does_not_clip_values_within_their_limits() -> None:
    """V_old + (V − V_old) differs from V in the last digit where V is small."""
    torch.manual_seed(12)
    rng = np.random.default_rng(12)
    model, config = random_model("categorical", rng), config_of(clip_value_range=10.0)
    samples = Samples.of(model, random_rollout(model, 12, 9, rng), config)
    shared = SharedModel(model)
    for _ in range(20):
        samples.values.add_(torch.randn_like(samples.values))
        expected = shared.gradient(losses.ppo_loss(model, samples, config).total).clone()
        found = ClosedForm(model, shared.gradient.flat).gradient(losses.ppo_loss, samples, config)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ACTIONS)
def test_the_first_gradient_equals_that_of_a2c(name: str) -> None:
    """At π = π_old every ratio is 1, and the gradient of the ratio is that of log π."""
    rng = np.random.default_rng(13)
    model, config = random_model(name, rng), config_of()
    rollout, shared = random_rollout(model, 10, 6, rng), SharedModel(model)
    expected = shared.gradient(losses.actor_critic_loss(model, rollout, config).total).clone()
    found = shared.gradient(
        losses.ppo_loss(model, Samples.of(model, rollout, config), config).total
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_one_epoch_of_one_minibatch_equals_a2c(tmp_path: pathlib.Path) -> None:
    shared: dict[str, Any] = {
        "env": "CartPole-v1",
        "total_timesteps": 3_000,
        "n_steps": 16,
        "num_envs": 8,
        "learning_rate": 1e-3,
        "normalize_rewards": True,
        "normalize_observations": True,
        "optimizer": "rmsprop",
        "gamma": 0.98,
        "gae_lambda": 0.95,
        "ent_coef": 0.01,
        "quiet": True,
    }
    one = {"epochs": 1, "batch_size": 128, "normalize_advantages": False}
    a2c.train(a2c.Config(**shared, run_dir=str(tmp_path / "a2c")))
    ppo.train(ppo.Config(**shared, **one, run_dir=str(tmp_path / "ppo")))
    first, second = (hogwild_rl.load(tmp_path / name).checkpoint for name in ("a2c", "ppo"))
    assert first.counters.updates == second.counters.updates > 20
    for name, parameter in first.parameters.items():
        torch.testing.assert_close(second.parameters[name], parameter, rtol=1e-3, atol=1e-5)


def test_every_epoch_has_each_sample_once_in_another_order() -> None:
    rng = np.random.default_rng(0)
    samples = random_samples(rng, rng.integers(0, A, N))
    minibatches = Minibatches(4, lambda n: torch.from_numpy(rng.permutation(n)))
    orders = []
    for _ in range(3):
        order = []
        for minibatch in minibatches.epoch(samples):
            assert minibatch.valid.shape == (1, N // 4)
            places = [samples.targets[0].tolist().index(x) for x in minibatch.targets[0].tolist()]
            for name, tensor in vars(samples).items():
                assert torch.equal(getattr(minibatch, name), tensor[:, places]), name
            order += places
        assert sorted(order) == list(range(N))
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]


def test_minibatches_of_an_lstm_are_whole_environments() -> None:
    rng = np.random.default_rng(2)
    T, B, H = 7, 6, 5
    model = ActorCritic(spaces.Box(-1, 1, (3,)), spaces.Discrete(4), Architecture(lstm=H))
    rollout = dataclasses.replace(
        random_rollout(model, T, B, rng),
        state=torch.from_numpy(rng.normal(0, 1, (2, B, H))).float(),
    )
    samples = Samples.of(model, rollout, config_of())
    assert samples.valid.shape == (T, B)
    seen = []
    for minibatch in Minibatches(3, lambda n: torch.from_numpy(rng.permutation(n))).epoch(samples):
        assert minibatch.valid.shape == (T, B // 3)
        loss = losses.ppo_loss(model, minibatch, config_of())
        assert abs(float(loss.kl)) < 1e-6  # log π equals log π_old: the states are the right ones
        torch.testing.assert_close(loss.values, minibatch.values)
        seen += minibatch.state[0, :, 0].tolist()
    assert sorted(seen) == sorted(rollout.state[0, :, 0].tolist())


def test_epochs_end_when_the_kl_exceeds_its_target(tmp_path: pathlib.Path) -> None:
    updates = []
    for number, target_kl in enumerate((0.0, 1e-9, 10.0)):
        config = ppo.Config(
            env="CartPole-v1",
            total_timesteps=1_900,
            epochs=5,
            learning_rate=1e-3,
            target_kl=target_kl,
            quiet=True,
            run_dir=str(tmp_path / str(number)),
        )
        ppo.train(config)
        updates.append(hogwild_rl.load(tmp_path / str(number)).checkpoint.counters.updates)
    assert updates == [40, 8, 40]  # 8 rollouts of one minibatch


def test_a_rollout_with_nonfinite_numbers_is_one_dropped_update(tmp_path: pathlib.Path) -> None:
    config = ppo.Config(
        env="tests.envs:FaultyRareNan-v0",
        num_envs=2,
        n_steps=32,
        batch_size=16,
        total_timesteps=8_000,
        quiet=True,
        run_dir=str(tmp_path / "run"),
    )
    ppo.train(config)
    counters = hogwild_rl.load(tmp_path / "run").checkpoint.counters
    assert 4 <= counters.dropped <= 8  # once per 1,000 steps of each environment
    rollouts = counters.dropped + counters.updates / 16
    assert rollouts == counters.dropped + counters.updates // 16
    assert 8_000 <= counters.steps <= 8_000 + 64


def test_the_log_is_of_the_parameters_after_a_rollout(tmp_path: pathlib.Path) -> None:
    """Before the first update π = π_old, so that KL and clip fraction are 0."""
    settings: dict[str, Any] = {"learning_rate": 3e-3, "lr_schedule": "constant", "quiet": True}
    settings |= {"num_envs": 8, "n_steps": 32, "batch_size": 256, "epochs": 1}
    run = tmp_path / "run"
    ppo.train(ppo.Config(run_dir=str(run), total_timesteps=4_096, **settings))
    with (run / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["approx_kl"]) > 1e-7
    assert float(rows[-1]["learning_rate"]) == pytest.approx(3e-3)
