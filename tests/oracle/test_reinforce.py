"""Tests of REINFORCE's gradient: exact mean and variance over all episodes of a small MDP."""

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
    """Returns settings whose loss has only the policy term."""
    settings = {"gamma": 1.0, "ent_coef": 0.0, "vf_coef": 0.0, **given}
    return reinforce.Config(returns=returns, baseline=baseline, **settings)


def estimate(model: ActorCritic, rollout: Rollout, config: reinforce.Config) -> Floats:
    """Returns the package's estimate of ∇J with respect to the policy's weights and biases."""
    head = model.policy_head.logits
    parts = torch.autograd.grad(
        reinforce.episode_loss(model, rollout, config).total, [head.weight, head.bias]
    )
    return -np.concatenate([part.double().numpy().ravel() for part in parts])


@functools.cache
def moments(returns: str, baseline: str, gamma: float = 1.0) -> tuple[Floats, Floats]:
    """Returns exact mean and variance of the estimate over all pairs of episodes."""
    model, config = mdp.model(gamma), config_of(returns, baseline, gamma=gamma)
    policy, every = mdp.policy_of(*mdp.parameters_of(model)), mdp.episodes()
    pairs = list(itertools.product(every, repeat=2))
    weights = np.array([np.prod([mdp.probability(e, policy) for e in pair]) for pair in pairs])
    estimates = np.stack([estimate(model, mdp.rollout(pair), config) for pair in pairs])
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    mean = weights @ estimates
    return mean, weights @ (estimates - mean) ** 2


def true_gradient(gamma: float = 1.0) -> Floats:
    """Returns ∇J at the model's parameters, by central differences of J."""
    return mdp.gradient(*mdp.parameters_of(mdp.model(gamma)), gamma)


def test_the_mdp_has_episodes_of_every_length() -> None:
    """Some terminate and some are truncated, so that the tests below cover both."""
    every = mdp.episodes()
    assert len(every) == len(set(every)) == 28
    assert {len(each.actions) for each in every} == {1, 2, 3}
    policy = mdp.policy_of(*mdp.parameters_of(mdp.model()))
    expected = sum(mdp.probability(each, policy) * sum(each.rewards) for each in every)
    assert expected == pytest.approx(float(mdp.values(policy, 1.0)[0, 0]), abs=1e-12)
    assert 0.1 < policy.min() < policy.max() < 0.9


@pytest.mark.parametrize(("returns", "baseline"), VARIANTS)
def test_the_expected_estimate_equals_the_gradient(returns: str, baseline: str) -> None:
    """The estimate is unbiased for all returns and baselines."""
    mean, _ = moments(returns, baseline)
    assert np.linalg.norm(true_gradient()) > 0.5  # 1e-6 is negligible
    np.testing.assert_allclose(mean, true_gradient(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("baseline", BASELINES)
def test_total_returns_estimate_the_gradient_of_the_discounted_objective(baseline: str) -> None:
    """With γ < 1 both weight r_t by γ^t."""
    mean, _ = moments("total", baseline, 0.7)
    np.testing.assert_allclose(mean, true_gradient(0.7), rtol=0, atol=1e-6)
    assert np.abs(true_gradient(0.7) - true_gradient()).max() > 0.1


def test_one_episode_is_enough_without_the_mean_baseline() -> None:
    """The estimate is also unbiased for B = 1."""
    model, every = mdp.model(), mdp.episodes()
    policy = mdp.policy_of(*mdp.parameters_of(model))
    for returns, baseline in itertools.product(("total", "to-go"), ("none", "value")):
        config = config_of(returns, baseline, episodes=1)
        mean = sum(
            mdp.probability(each, policy) * estimate(model, mdp.rollout([each]), config)
            for each in every
        )
        np.testing.assert_allclose(mean, true_gradient(), rtol=0, atol=1e-6)


def test_a_wrong_value_baseline_does_not_bias_the_estimate() -> None:
    """Any function of the state is a valid baseline."""
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


def test_returns_to_go_and_baselines_reduce_the_variance() -> None:
    """Compares traces of the covariance."""
    variance = {variant: moments(*variant)[1].sum() for variant in VARIANTS}
    for baseline in BASELINES:
        assert variance["to-go", baseline] < 0.95 * variance["total", baseline]
    for returns, baseline in itertools.product(("total", "to-go"), ("mean", "value")):
        assert variance[returns, baseline] < 0.95 * variance[returns, "none"]
    assert min(variance, key=lambda variant: variance[variant]) == ("to-go", "value")


@pytest.mark.parametrize("baseline", BASELINES)
def test_the_value_head_is_trained_only_as_the_baseline(baseline: str) -> None:
    """Its targets are returns to go, also if the policy uses total returns."""
    model, rollout = mdp.model(), mdp.rollout(mdp.episodes()[:9])
    with torch.no_grad():
        model.value_head.weight += 1
    config = config_of("total", baseline, vf_coef=0.5)
    (found,) = torch.autograd.grad(
        reinforce.episode_loss(model, rollout, config).total,
        [model.value_head.weight],
        materialize_grads=True,
    )
    expected = torch.zeros(mdp.HORIZON * mdp.STATES, dtype=torch.float64)
    for b, t in itertools.product(range(9), range(mdp.HORIZON)):
        if baseline == "value" and bool(rollout.valid[t, b]):
            observation = rollout.observations[t, b]
            error = model.value_head(observation) - rollout.rewards[t:, b].sum()
            expected += (error * observation).detach() / rollout.valid.sum()  # 0.5 · 2 · error
    torch.testing.assert_close(found[0], expected)


@pytest.fixture(scope="module")
def batches() -> list[Rollout]:
    """Returns 80 collected batches of 1000 episodes."""
    model, envs = mdp.model(dtype=torch.float32), vectorize.sequential(mdp.Small, 1000)
    env_codec = EnvCodec(
        ObservationCodec.of(envs.single_observation_space),
        ActionCodec.of(envs.single_action_space),
    )
    act = functools.partial(model.act, generator=torch.Generator().manual_seed(1))
    collector = EpisodeCollector(envs, env_codec, 2, lambda *_: None)
    return [collector.collect(act) for _ in range(80)]


def episodes_of(batch: Rollout) -> list[mdp.Episode]:
    """Returns the columns of a batch, up to their ends."""
    found = []
    for b, n in enumerate(batch.valid.sum(0).tolist()):
        one_hot = batch.observations[: n + 1, b].reshape(n + 1, mdp.HORIZON, mdp.STATES)
        states = [int(row.sum(0).argmax()) if row.any() else mdp.END for row in one_hot]
        if not batch.terminated[n - 1, b]:  # the last observation is 0: infer s' from the reward
            assert n == mdp.HORIZON
            rewards = mdp.REWARDS[states[-2], batch.actions[n - 1, b]]
            possible = mdp.NEXT_PROBS[states[-2], batch.actions[n - 1, b]] > 0
            states[-1] = int(np.argmax(possible & (rewards == batch.rewards[n - 1, b].item())))
        actions, rewards = batch.actions[:n, b].tolist(), batch.rewards[:n, b].tolist()
        found.append(mdp.Episode(tuple(states), tuple(actions), tuple(rewards)))
    return found


def test_collected_episodes_have_the_frequencies_of_the_policy(batches: list[Rollout]) -> None:
    """Each of the 28 within 4.5 standard errors; one standard error is at most 0.4 %."""
    policy = mdp.policy_of(*mdp.parameters_of(mdp.model()))
    counts = Counter(each for batch in batches[:20] for each in episodes_of(batch))
    every = mdp.episodes()
    assert counts.keys() <= set(every)
    P, n = np.array([mdp.probability(each, policy) for each in every]), counts.total()
    error = np.sqrt(P * (1 - P) / n)
    assert error.max() < 0.004
    assert (np.abs(np.array([counts[each] for each in every]) / n - P) < 4.5 * error).all()


@pytest.mark.parametrize(("returns", "baseline"), VARIANTS)
def test_collected_batches_estimate_the_gradient(
    batches: list[Rollout], returns: str, baseline: str
) -> None:
    """The mean estimate is within 4 standard errors, per component and along the gradient.

    Along the gradient these are less than 8 % of its norm, so a bias of 10 % fails the test.
    """
    model, config = mdp.model(dtype=torch.float32), config_of(returns, baseline)
    estimates = np.stack([estimate(model, batch, config) for batch in batches])
    norm = np.linalg.norm(true_gradient())
    along = estimates @ true_gradient() / norm
    for found, true in ((estimates, true_gradient()), (along, norm)):
        error = found.std(0, ddof=1) / np.sqrt(len(batches))
        assert (np.abs(found.mean(0) - true) <= 4 * error + 1e-5).all()
    assert 4 * error < 0.08 * norm
