"""Tests of gradients in closed form and of sampled actions against autograd and the model."""

import types
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import Space, spaces

from hogwild_rl.collect.rollout import Rollout
from hogwild_rl.hogwild.shared_model import SharedModel
from hogwild_rl.learn import losses
from hogwild_rl.learn.closed_form import ClosedForm
from hogwild_rl.models.actor_critic import ActorCritic, Architecture
from hogwild_rl.models.distributions import LOG_STD_MAX

ACTIONS: dict[str, Space[Any]] = {
    "categorical": spaces.Discrete(4),
    "multi-categorical": spaces.MultiDiscrete([2, 2, 3, 5]),
    "bernoulli": spaces.MultiBinary(3),
    "gaussian": spaces.Box(-1, 1, (3,)),
    "gaussian of the state": spaces.Box(-1, 1, (2,)),
}


def random_model(name: str, rng: np.random.Generator) -> ActorCritic:
    """Network of a random architecture, with random parameters and moments."""
    architecture = Architecture(
        hidden=tuple(rng.integers(1, 70, rng.integers(0, 4)).tolist()),
        activation=str(rng.choice(["tanh", "relu"])),
        shared_trunk=bool(rng.integers(2)),
        standardize=bool(rng.integers(2)),
        state_dependent_std=name == "gaussian of the state",
    )
    space = spaces.Box(-1, 1, (int(rng.integers(1, 20)),))
    model = ActorCritic(space, ACTIONS[name], architecture)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.from_numpy(rng.normal(0, 0.1, parameter.shape)))
    return model


def random_rollout(model: ActorCritic, T: int, B: int, rng: np.random.Generator) -> Rollout:
    """Rollout of random observations with actions of the model; 1 of 10 steps is not valid."""
    size = next(model.policy_body.parameters(), model.value_head.weight).shape[1]
    observations = torch.from_numpy(rng.normal(0, 1, (T + 1, B, size)).astype(np.float32))
    with torch.no_grad():
        actions = model.policy(observations[:-1].flatten(0, 1))[0].sample().unflatten(0, (T, B))
    valid, terminated, truncated = torch.from_numpy(
        rng.random((3, T, B)) < [[[0.9]], [[0.1]], [[0.1]]]
    )
    rewards = torch.from_numpy(rng.normal(0, 1, (T, B)).astype(np.float32))
    return Rollout(
        observations=observations,
        state=torch.zeros(2, B, 0),
        actions=actions,
        rewards=rewards * valid,
        terminated=terminated & valid,
        truncated=truncated & valid & ~terminated,
        valid=valid,
    )


def another_loss(model: Any, rollout: Rollout, config: Any) -> losses.PolicyLoss:
    """Equal to `actor_critic_loss`, but not known to have a closed form."""
    return losses.actor_critic_loss(model, rollout, config)


@pytest.mark.parametrize(("loss", "trials"), [(losses.actor_critic_loss, 40), (another_loss, 10)])
@pytest.mark.parametrize("name", ACTIONS)
def test_gradients_equal_those_of_autograd(name: str, loss: Any, trials: int) -> None:
    rng = np.random.default_rng(7)
    for trial in range(trials):
        model = random_model(name, rng)
        T, B = (20, 200) if trial == 0 else rng.integers(1, 25, 2).tolist()
        rollout = random_rollout(model, T, B, rng)
        config = types.SimpleNamespace(
            gamma=float(rng.random()),
            gae_lambda=float(rng.choice([0.0, 0.95, 1.0])),
            vf_coef=float(rng.random()),
            ent_coef=float(rng.random()),
        )
        shared = SharedModel(model)
        expected = shared.gradient(losses.actor_critic_loss(model, rollout, config).total).clone()
        closed_form = ClosedForm(model, shared.gradient.flat)
        for _ in range(2):  # nothing of the first call is in the second
            shared.gradient.flat.fill_(torch.nan)
            gradient = closed_form.gradient(loss, rollout, config)
            assert gradient is shared.gradient.flat
            assert float((gradient - expected).norm()) <= 1e-5 * float(expected.norm()), trial


def test_a_rollout_without_valid_steps_has_gradient_0() -> None:
    rng = np.random.default_rng(0)
    model = random_model("categorical", rng)
    rollout = random_rollout(model, 4, 2, rng)
    rollout.valid.fill_(False)
    config = types.SimpleNamespace(gamma=0.9, gae_lambda=1.0, vf_coef=0.5, ent_coef=0.1)
    closed_form = ClosedForm(model, SharedModel(model).gradient.flat)
    assert closed_form.gradient(losses.actor_critic_loss, rollout, config).abs().max() == 0


def test_a_clamped_deviation_has_no_gradient() -> None:
    rng = np.random.default_rng(1)
    model = random_model("gaussian of the state", rng)
    with torch.no_grad():
        model.policy_head.parts[1].bias.copy_(torch.tensor([50.0, 0.0]))
    rollout = random_rollout(model, 4, 2, rng)
    config = types.SimpleNamespace(gamma=0.9, gae_lambda=1.0, vf_coef=0.5, ent_coef=0.1)
    shared = SharedModel(model)
    ClosedForm(model, shared.gradient.flat).gradient(losses.actor_critic_loss, rollout, config)
    sizes = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    parts = dict(zip(names, shared.gradient.flat.split(sizes), strict=True))
    clamped, free = parts["policy_head.log_std.bias"].tolist()
    assert clamped == 0 != free
    rows = np.repeat(rollout.observations[0, :1].numpy(), 1000, 0)
    actions, _ = ClosedForm(model, shared.gradient.flat).act(rows, generator=rng)
    assert actions[:, 0].std() == pytest.approx(np.exp(LOG_STD_MAX), rel=0.1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ACTIONS)
def test_values_that_are_not_finite_reach_the_gradient_without_a_warning(
    name: str, value: float
) -> None:
    rng = np.random.default_rng(2)
    model = random_model(name, rng)
    rollout = random_rollout(model, 4, 2, rng)
    rollout.valid.fill_(True)
    rollout.rewards[0, 0] = value
    config = types.SimpleNamespace(gamma=0.9, gae_lambda=1.0, vf_coef=0.5, ent_coef=0.1)
    closed_form = ClosedForm(model, SharedModel(model).gradient.flat)
    gradient = closed_form.gradient(losses.actor_critic_loss, rollout, config)
    assert not gradient.norm().isfinite()
    closed_form.act(np.full((3, rollout.observations.shape[-1]), value, np.float32), generator=rng)


N = 20_000


@pytest.mark.parametrize("name", ACTIONS)
def test_sampled_actions_have_the_probabilities_of_the_model(name: str) -> None:
    rng = np.random.default_rng(3)
    model = random_model(name, rng)
    observation = random_rollout(model, 1, 1, rng).observations[0]
    closed_form = ClosedForm(model, SharedModel(model).gradient.flat)
    rows = np.repeat(observation.numpy(), N, 0)
    actions, state = closed_form.act(rows, "state", generator=rng)
    policy = model.policy(torch.from_numpy(rows))[0]
    expected = policy.sample()
    assert state == "state"
    assert actions.shape == expected.shape
    assert torch.from_numpy(actions).dtype == expected.dtype
    if "gaussian" in name:
        mean = policy.mode()[0].numpy()
        std = expected.numpy().std(0)
        assert actions.mean(0) == pytest.approx(mean, abs=5 * float(std.max()) / N**0.5)
        assert actions.std(0) == pytest.approx(std, rel=0.05)
        return
    found, counts = np.unique(actions, axis=0, return_counts=True)
    one = model.policy(torch.from_numpy(rows[: len(found)]))[0]
    probabilities = one.log_prob(torch.from_numpy(found)).exp().detach().numpy()
    assert probabilities.sum() == pytest.approx(1, abs=0.02)
    errors = np.abs(counts / N - probabilities)
    assert (errors < 5 * np.sqrt(probabilities / N) + 1e-3).all()


def test_supported_are_built_in_mlps_without_lstm() -> None:
    box, actions = spaces.Box(-1, 1, (4,)), spaces.Discrete(2)
    for architecture, expected in (
        (Architecture(), True),
        (Architecture(standardize=True, shared_trunk=True, hidden=()), True),
        (Architecture(lstm=3), False),
        (Architecture(bfloat16=True), False),
        (Architecture(network=lambda space: torch.nn.Linear(*space.shape, 8)), False),
    ):
        assert ClosedForm.supports(ActorCritic(box, actions, architecture)) is expected
    image = spaces.Box(0, 255, (3, 20, 20), np.uint8)
    assert not ClosedForm.supports(ActorCritic(image, actions, Architecture(network="mlp")))
    assert not ClosedForm.supports(torch.nn.Linear(2, 2))
