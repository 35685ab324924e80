"""REINFORCE's gradient is that of J: expectations and variances over every episode there is."""

import functools
import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hogwild_rl import reinforce
from hogwild_rl.collect.episodes import EpisodeCollector
from hogwild_rl.collect.rollout import Rollout
from hogwild_rl.envs import vectorize
from hogwild_rl.envs.codecs import ActionCodec, EnvCodec, ObservationCodec
from hogwild_rl.models.actor_critic import ActorCritic
from tests import mdp

Floats = NDArray[np.float64]

BASELINES = ("none", "mean", "value")
VARIANTS = list(itertools.product(("total", "to-go"), BASELINES))


def config_of(returns: str, baseline: str, **given: Any) -> reinforce.Config:
    """Settings under which the loss has its policy part alone."""
    settings = {"gamma": 1.0, "ent_coef": 0.0, "vf_coef": 0.0, **given}
    return reinforce.Config(returns=returns, baseline=baseline, **settings)


def estimate(model: ActorCritic, played: Rollout, config: reinforce.Config) -> Floats:
    """∇J as the package estimates it, by the policy's weights and biases."""
    head = model.policy_head.logits
    parts = torch.autograd.grad(
        reinforce.reinforce_objective(model, played, config).total, [head.weight, head.bias]
    )
    return -np.concatenate([part.double().numpy().ravel() for part in parts])


@functools.cache
def moments(returns: str, baseline: str, gamma: float = 1.0) -> tuple[Floats, Floats]:
    """Exact mean and variance of the estimate from two episodes: every pair by its probability."""
    model, config = mdp.model(gamma), config_of(returns, baseline, gamma=gamma)
    policy, every = mdp.policy_of(*mdp.parameters_of(model)), mdp.episodes()
    pairs = list(itertools.product(every, repeat=2))
    weights = np.array([np.prod([mdp.probability(e, policy) for e in pair]) for pair in pairs])
    estimates = np.stack([estimate(model, mdp.rollout(pair), config) for pair in pairs])
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    mean = weights @ estimates
    return mean, weights @ (estimates - mean) ** 2


def true_gradient(gamma: float = 1.0) -> Floats:
    """∇J at the model's parameters, by differences of J."""
    return mdp.gradient(*mdp.parameters_of(mdp.model(gamma)), gamma)


def test_the_process_has_episodes_of_every_length() -> None:
    """Some end by themselves and some by the time limit, else the tests below would show less."""
    every = mdp.episodes()
    assert len(every) == len(set(every)) == 28
    assert {len(each.actions) for each in every} == {1, 2, 3}
    policy = mdp.policy_of(*mdp.parameters_of(mdp.model()))
    expected = sum(mdp.probability(each, policy) * sum(each.rewards) for each in every)
    assert expected == pytest.approx(float(mdp.values(policy, 1.0)[0, 0]), abs=1e-12)
    assert 0.1 < policy.min() < policy.max() < 0.9


@pytest.mark.parametrize(("returns", "baseline"), VARIANTS)
def test_the_expected_estimate_is_the_gradient(returns: str, baseline: str) -> None:
    """Exactly, whatever is credited and taken off."""
    mean, _ = moments(returns, baseline)
    assert np.linalg.norm(true_gradient()) > 0.5  # beside which 1e-6 is nothing
    np.testing.assert_allclose(mean, true_gradient(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("baseline", BASELINES)
def test_total_returns_estimate_the_gradient_of_a_discounted_value(baseline: str) -> None:
    """With γ < 1 they weigh r_t by γ^t, and J does too."""
    mean, _ = moments("total", baseline, 0.7)
    np.testing.assert_allclose(mean, true_gradient(0.7), rtol=0, atol=1e-6)
    assert np.abs(true_gradient(0.7) - true_gradient()).max() > 0.1


def test_one_episode_is_enough_without_a_mean() -> None:
    """B = 1: the same expectation."""
    model, every = mdp.model(), mdp.episodes()
    policy = mdp.policy_of(*mdp.parameters_of(model))
    for returns, baseline in itertools.product(("total", "to-go"), ("none", "value")):
        config = config_of(returns, baseline, episodes=1)
        mean = sum(
            mdp.probability(each, policy) * estimate(model, mdp.rollout([each]), config)
            for each in every
        )
        np.testing.assert_allclose(mean, true_gradient(), rtol=0, atol=1e-6)


def test_a_value_that_is_wrong_does_not_bias_it() -> None:
    """Any function of the state may be taken off."""
    model, every = mdp.model(), mdp.episodes()
    policy = mdp.policy_of(*mdp.parameters_of(model))
    with torch.no_grad():
        model.value_head.weight.copy_(torch.arange(-3.0, 3.0))
    config = config_of("to-go", "value", episodes=1)
    mean = sum(
        mdp.probability(each, policy) * estimate(model, mdp.rollout([each]), config)
        for each in every
    )
    np.testing.assert_allclose(mean, true_gradient(), rtol=0, atol=1e-6)


def test_the_past_and_what_is_usual_are_noise() -> None:
    """Traces of the covariance: the return to go is below the total, each baseline below none."""
    noise = {variant: moments(*variant)[1].sum() for variant in VARIANTS}
    for baseline in BASELINES:
        assert noise["to-go", baseline] < 0.95 * noise["total", baseline]
    for returns, baseline in itertools.product(("total", "to-go"), ("mean", "value")):
        assert noise[returns, baseline] < 0.95 * noise[returns, "none"]
    assert min(noise, key=lambda variant: noise[variant]) == ("to-go", "value")


@pytest.mark.parametrize("baseline", BASELINES)
def test_only_a_value_that_is_the_baseline_learns(baseline: str) -> None:
    """From the returns to go, whatever the policy is credited with; its own error is its loss."""
    model, played = mdp.model(), mdp.rollout(mdp.episodes()[:9])
    with torch.no_grad():
        model.value_head.weight += 1
    config = config_of("total", baseline, vf_coef=0.5)
    (found,) = torch.autograd.grad(
        reinforce.reinforce_objective(model, played, config).total,
        [model.value_head.weight],
        materialize_grads=True,
    )
    expected = torch.zeros(mdp.HORIZON * mdp.STATES, dtype=torch.float64)
    for b, t in itertools.product(range(9), range(mdp.HORIZON)):
        if baseline == "value" and bool(played.valid[t : t + 1, b].any()):
            seen = played.observations[t, b]
            error = model.value_head(seen) - played.rewards[t:, b].sum()
            expected += (error * seen).detach() / played.valid.sum()  # 0.5 · 2 · error
    torch.testing.assert_close(found[0], expected)


@pytest.fixture(scope="module")
def batches() -> list[Rollout]:
    """Really played: 60 batches of 1000 episodes."""
    model, envs = mdp.model(dtype=torch.float32), vectorize.sync_vector_env(mdp.Small, 1000)
    env_codec = EnvCodec(
        ObservationCodec.of(envs.single_observation_space),
        ActionCodec.of(envs.single_action_space),
    )
    act = functools.partial(model.act, generator=torch.Generator().manual_seed(1))
    collector = EpisodeCollector(envs, env_codec, 2, lambda phase: None)
    return [collector.collect(act) for _ in range(60)]


def played_in(batch: Rollout) -> list[mdp.Episode]:
    """Its columns up to their ends."""
    found = []
    for b, n in enumerate(batch.valid.sum(0).tolist()):
        shown = batch.observations[: n + 1, b].reshape(n + 1, mdp.HORIZON, mdp.STATES)
        states = [int(row.sum(0).argmax()) if row.any() else mdp.END for row in shown]
        if not batch.terminated[n - 1, b]:  # the last observation does not tell: the reward does
            assert n == mdp.HORIZON
            pays = mdp.PAYS[states[-2], batch.actions[n - 1, b]]
            follows = mdp.NEXT[states[-2], batch.actions[n - 1, b]] > 0
            states[-1] = int(np.argmax(follows & (pays == batch.rewards[n - 1, b].item())))
        actions, rewards = batch.actions[:n, b].tolist(), batch.rewards[:n, b].tolist()
        found.append(mdp.Episode(tuple(states), tuple(actions), tuple(rewards)))
    return found


def test_played_episodes_come_as_often_as_the_policy_says(batches: list[Rollout]) -> None:
    """Each of the 28 within 4.5 standard errors, of which one is at most 0.4 %."""
    policy = mdp.policy_of(*mdp.parameters_of(mdp.model()))
    counts = Counter(each for batch in batches[:20] for each in played_in(batch))
    every = mdp.episodes()
    assert counts.keys() <= set(every)
    P, n = np.array([mdp.probability(each, policy) for each in every]), counts.total()
    error = np.sqrt(P * (1 - P) / n)
    assert error.max() < 0.004
    assert (np.abs(np.array([counts[each] for each in every]) / n - P) < 4.5 * error).all()


@pytest.mark.parametrize(("returns", "baseline"), VARIANTS)
def test_played_batches_estimate_the_gradient(
    batches: list[Rollout], returns: str, baseline: str
) -> None:
    """Within 4 standard errors, in every component and along the gradient.

    Along the gradient these are less than 8 % of its norm: a bias of 10 % would be refused, and
    most of 8 %.
    """
    model, config = mdp.model(dtype=torch.float32), config_of(returns, baseline)
    estimates = np.stack([estimate(model, batch, config) for batch in batches])
    norm = np.linalg.norm(true_gradient())
    along = estimates @ true_gradient() / norm
    for found, true in ((estimates, true_gradient()), (along, norm)):
        error = found.std(0, ddof=1) / np.sqrt(len(batches))
        assert (np.abs(found.mean(0) - true) <= 4 * error + 1e-5).all()
    assert 4 * error < 0.08 * norm
