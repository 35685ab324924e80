"""Tests of V-trace and of late pulls against explicit sums and known limits."""

import dataclasses
import pathlib
import types
from typing import Any

import numpy as np
import pytest
import torch

import hogwild_rl
from hogwild_rl import a3c, ppo
from hogwild_rl.errors import UserError
from hogwild_rl.hogwild.shared_model import SharedModel
from hogwild_rl.learn import losses, returns
from hogwild_rl.learn.closed_form import ClosedForm
from hogwild_rl.learn.importance import ActedRollout, weighted_actor_critic_loss
from tests.oracle.test_advantages import Floats, Stream, random_stream, td_error
from tests.oracle.test_closed_form import ACTIONS, random_model, random_rollout
from tests.oracle.test_staleness import updates_by_staleness


def v_trace(
    s: Stream, weights: Floats, gamma: float = 0.9, gae_lambda: float = 1.0
) -> tuple[Floats, Floats]:
    """Advantages and targets, computed by the package."""
    arrays = (s.rewards, s.values, s.terminated, s.truncated, s.valid, weights)
    tensors = (torch.from_numpy(array.copy()) for array in arrays)
    advantages, targets = returns.v_trace(*tensors, gamma=gamma, gae_lambda=gae_lambda)
    return advantages.numpy(), targets.numpy()


def explicit_target(s: Stream, rho: Floats, t: int, b: int, gamma: float, lam: float) -> float:
    """v_t = V(s_t) + Σ_k (γ λ)^k (Π_{i<k} c_{t+i}) ρ_{t+k} δ_{t+k}, to the end of the episode."""
    total, product = float(s.values[t, b]), 1.0
    for k in range(t, len(s.rewards)):
        if not s.valid[k, b]:
            break
        total += product * float(rho[k, b]) * td_error(s, k, b, gamma)
        if s.terminated[k, b] or s.truncated[k, b]:
            break
        product *= gamma * lam * float(rho[k, b])
    return total


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_targets_equal_explicit_sums(lam: float) -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        s = random_stream(rng, 12, 3, (0.1, 0.1))
        rho = np.minimum(1, rng.lognormal(size=s.rewards.shape))
        advantages, targets = v_trace(s, rho, gae_lambda=lam)
        for t, b in zip(*np.nonzero(s.valid), strict=True):
            expected = explicit_target(s, rho, t, b, 0.9, lam)
            assert targets[t, b] == pytest.approx(expected, abs=1e-6)
            if lam == 1:  # r_t + γ v_{t+1} − V(s_t), as published
                following = s.values[t + 1, b]
                if not s.truncated[t, b] and t + 1 < len(s.rewards):
                    following = targets[t + 1, b]
                following = 0.0 if s.terminated[t, b] else following
                published = s.rewards[t, b] + 0.9 * following - s.values[t, b]
                assert advantages[t, b] == pytest.approx(published, abs=1e-6)


def test_weights_of_one_are_generalized_advantages() -> None:
    s = random_stream(np.random.default_rng(6), 15, 4, (0.1, 0.1))
    advantages, targets = v_trace(s, np.ones_like(s.rewards), gae_lambda=0.8)
    np.testing.assert_allclose(advantages, s.advantages(0.9, 0.8), atol=1e-12)
    np.testing.assert_allclose(targets, advantages + s.values[:-1], atol=1e-12)


def test_weights_of_steps_that_are_not_valid_have_no_effect() -> None:
    s = random_stream(np.random.default_rng(7), 15, 4, (0.2, 0.2))
    weights = np.random.default_rng(8).random(s.rewards.shape)
    marked = np.where(s.valid, weights, np.nan)
    for found, expected in zip(v_trace(s, marked), v_trace(s, weights), strict=True):
        np.testing.assert_array_equal(found[s.valid], expected[s.valid])


def config_of(staleness: str) -> Any:
    """Settings of the loss."""
    settings = {"gamma": 0.9, "gae_lambda": 0.8, "vf_coef": 0.5, "ent_coef": 0.01}
    return types.SimpleNamespace(staleness=staleness, **settings)


@pytest.mark.parametrize("staleness", ["late-pull", "v-trace"])
@pytest.mark.parametrize("name", ACTIONS)
def test_without_a_change_the_gradient_is_that_of_a3c(name: str, staleness: str) -> None:
    torch.manual_seed(3)
    rng = np.random.default_rng(3)
    model, config = random_model(name, rng), config_of(staleness)
    rollout, shared = random_rollout(model, 10, 6, rng), SharedModel(model)
    expected = shared.gradient(losses.actor_critic_loss(model, rollout, config).total).clone()
    closed_form, acted = ClosedForm(model, shared.gradient.flat), ActedRollout.of(model, rollout)
    found = closed_form.gradient(weighted_actor_critic_loss, acted, config)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("staleness", ["late-pull", "v-trace"])
def test_terms_of_the_loss_equal_numpy(staleness: str) -> None:
    """The model changes after acting; every fifth log-probability is raised, so that ρ < 1."""
    torch.manual_seed(4)
    rng = np.random.default_rng(4)
    model, config = random_model("categorical", rng), config_of(staleness)
    rollout = random_rollout(model, 10, 6, rng)
    acted = ActedRollout.of(model, rollout)
    acted.log_probs[::5] += 0.5
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        policy, values = model(rollout.observations, rollout.state, rollout.valid)
        new = policy.log_prob(rollout.actions).double().numpy()
        arrays = [rollout.rewards, values, rollout.terminated, rollout.truncated, rollout.valid]
        loss = weighted_actor_critic_loss(model, acted, config)
    stream = Stream(*(a.double().numpy() if a.is_floating_point() else a.numpy() for a in arrays))
    rho = np.minimum(1, np.exp(new - acted.log_probs.double().numpy()))
    assert 0.1 < (rho < 1).mean() < 0.9
    valid = stream.valid
    if staleness == "late-pull":
        advantages = stream.advantages(0.9, 0.8)
        errors = advantages  # of the targets A_t + V(s_t)
    else:
        advantages, targets = v_trace(stream, rho, gae_lambda=0.8)
        errors = targets - stream.values[:-1]
    expected = -(rho * advantages * new)[valid].mean()
    assert float(loss.policy) == pytest.approx(expected, rel=1e-4)
    assert float(loss.value) == pytest.approx((errors[valid] ** 2).mean(), rel=1e-4)


def mean_staleness(folder: pathlib.Path, staleness: Any) -> float:
    """Trains briefly; mean staleness of the gradients that were applied."""
    a3c.train(
        a3c.Config(
            env="CartPole-v1",
            workers=4,
            envs_per_worker=1,
            n_steps=16,
            total_timesteps=30_000,
            staleness=staleness,
            quiet=True,
            run_dir=str(folder),
        )
    )
    assert hogwild_rl.load(folder).checkpoint.counters.updates > 100
    counts = updates_by_staleness(folder)
    return sum(tau * count for tau, count in counts.items()) / sum(counts.values())


def test_late_pulls_reduce_staleness(tmp_path: pathlib.Path) -> None:
    plain, late, v = (
        mean_staleness(tmp_path / name, name) for name in ("ignore", "late-pull", "v-trace")
    )
    assert late < 0.7 * plain
    assert v < 0.7 * plain


def test_late_pull_is_not_for_ppo() -> None:
    for value in ("late-pull", "v-trace"):
        with pytest.raises(UserError, match=f"leave out staleness {value}"):
            ppo.Config(workers=2, staleness=value)  # type: ignore[arg-type]
    assert dataclasses.replace(a3c.Config(), staleness="v-trace").pulls_late
