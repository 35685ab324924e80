"""Tests of the actor-critic network: shapes, initial weights and error messages."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import Space, spaces
from torch import Tensor, nn

from hogwild_rl import errors
from hogwild_rl.envs.codecs import ActionCodec, ObservationCodec
from hogwild_rl.models import layers
from hogwild_rl.models.actor_critic import ActorCritic, Architecture

T, B, ACTIONS, INPUTS = 6, 3, 5, 4
OBSERVATIONS = spaces.Box(-1, 1, (INPUTS,), np.float32)
ARCHITECTURES = {
    "separate": Architecture(hidden=(16, 8)),
    "shared": Architecture(hidden=(16, 8), shared_trunk=True),
    "relu": Architecture(hidden=(16,), activation="relu"),
    "linear": Architecture(hidden=()),
}
every_architecture = pytest.mark.parametrize(
    "architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys()
)


def generator(seed: int = 0) -> torch.Generator:
    """Seeded random generator."""
    return torch.Generator().manual_seed(seed)


def make(architecture: Architecture, seed: int = 0) -> ActorCritic:
    """Model for four inputs and five actions."""
    return ActorCritic(OBSERVATIONS, spaces.Discrete(ACTIONS), architecture, generator(seed))


def observations(*shape: int) -> Tensor:
    """Standard normal observations."""
    return torch.randn(*shape, INPUTS, generator=generator(1))


def parameter_count(model: nn.Module) -> int:
    """Number of elements of all parameters."""
    return sum(p.numel() for p in model.parameters())


def log_probs(model: ActorCritic, inputs: Tensor) -> Tensor:
    """Log π of every action, [..., A]."""
    policy, _ = model.policy(inputs)
    shape = policy.entropy().shape
    return torch.stack([policy.log_prob(torch.full(shape, a)) for a in range(ACTIONS)], -1)


@every_architecture
@pytest.mark.parametrize("shape", [(), (B,), (T, B)])
def test_policy_has_the_shape_of_the_observations(
    architecture: Architecture, shape: tuple[int, ...]
) -> None:
    """Observations are [..., O], the distribution [...]."""
    policy, _ = make(architecture).policy(observations(*shape))
    actions = policy.sample(generator())
    assert actions.shape == shape
    assert policy.mode().shape == shape
    assert policy.entropy().shape == shape
    assert policy.log_prob(actions).shape == shape


@every_architecture
def test_forward_returns_one_more_row_of_values_than_of_policy(architecture: Architecture) -> None:
    """Observations are [T+1, B, O], the policy [T, B] and the values [T+1, B]."""
    policy, values = make(architecture)(observations(T + 1, B))
    assert values.shape == (T + 1, B)
    assert policy.entropy().shape == (T, B)


@every_architecture
def test_forward_treats_rows_independently(architecture: Architecture) -> None:
    """Policy and value of row t equal those of observation t alone."""
    model, inputs = make(architecture), observations(T + 1, B)
    nn.init.normal_(model.policy_head.logits.weight, generator=generator(2))
    policy, values = model(inputs)
    actions = torch.randint(ACTIONS, (T, B), generator=generator(3))
    together = policy.log_prob(actions)
    for t in range(T):
        alone, _ = model.policy(inputs[t])
        torch.testing.assert_close(alone.log_prob(actions[t]), together[t])
        torch.testing.assert_close(model(inputs[t : t + 1])[1][0], values[t])
    assert together.std().item() > 0.1


@every_architecture
def test_policy_and_value_depend_on_the_observation(architecture: Architecture) -> None:
    model, inputs = make(architecture), observations(T + 1, B)
    assert log_probs(model, inputs).std(dim=0).min().item() > 0
    assert model(inputs)[1].std().item() > 0.1


def test_shared_trunk_has_one_body_and_separate_networks_two() -> None:
    """The gradient of the values reaches the shared body, or only the value body."""
    shared, separate = make(ARCHITECTURES["shared"]), make(ARCHITECTURES["separate"])
    body = INPUTS * 16 + 16 + 16 * 8 + 8
    heads = (8 + 1) * ACTIONS + (8 + 1)
    assert parameter_count(shared) == body + heads
    assert parameter_count(separate) == 2 * body + heads
    assert modules_with_value_gradient(shared) == {"policy_body", "value_head"}
    assert modules_with_value_gradient(separate) == {"value_body", "value_head"}


def modules_with_value_gradient(model: ActorCritic) -> set[str]:
    """Modules that have a gradient of a loss of the values."""
    model(observations(T + 1, B))[1].square().sum().backward()
    reached = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()]
    return {name.partition(".")[0] for name in reached}


OBSERVATION_SPACES = {
    "dict": spaces.Dict({"position": spaces.Box(0, 1, (2,)), "gear": spaces.Discrete(3)}),
    "tuple": spaces.Tuple([spaces.MultiBinary(2), spaces.MultiDiscrete([2, 3])]),
    "images": spaces.Box(0, 255, (84, 84, 4), np.uint8),
    "small images": spaces.Box(0, 255, (16, 17), np.uint8),
    "images in a dict": spaces.Dict({"camera": spaces.Box(0, 255, (36, 36, 3), np.uint8)}),
    "scalar": spaces.Box(0, 1, ()),
    "matrix": spaces.Box(-1, 1, (2, 3)),
    "discrete": spaces.Discrete(4),
    "from 1": spaces.Discrete(4, start=1),
}


@pytest.mark.parametrize("space", OBSERVATION_SPACES.values(), ids=OBSERVATION_SPACES.keys())
def test_supported_observation_spaces_affect_policy_and_values(space: Space[Any]) -> None:
    """Policy and values depend on the rows that the space's codec makes."""
    space.seed(0)
    codec = ObservationCodec.of(space)
    model = ActorCritic(space, spaces.Discrete(ACTIONS), Architecture(hidden=(8,)))
    sampled = [codec.row(space.sample()).astype(codec.dtype) for _ in range((T + 1) * B)]
    rows = torch.from_numpy(np.stack(sampled)).unflatten(0, (T + 1, B))
    policy, values = model(rows)
    assert policy.entropy().shape == (T, B)
    assert values.shape == (T + 1, B)
    assert values.std().item() > 0
    assert log_probs(model, rows[0]).std(dim=0).min().item() > 0


ACTION_SPACES = {
    "discrete": spaces.Discrete(3),
    "from 1": spaces.Discrete(3, start=1),
    "multidiscrete": spaces.MultiDiscrete([2, 3]),
    "multibinary": spaces.MultiBinary(4),
    "box": spaces.Box(-1, 1, (2,)),
    "matrix": spaces.Box(0, 5, (2, 3)),
}


@pytest.mark.parametrize("space", ACTION_SPACES.values(), ids=ACTION_SPACES.keys())
def test_supported_action_spaces_are_sampled(space: Space[Any]) -> None:
    """Sampled actions are in the space after conversion, and have a log-probability."""
    codec = ActionCodec.of(space)
    model = ActorCritic(OBSERVATIONS, space, Architecture())
    sampled, state = model.act(observations(50), generator=generator())
    assert state is None
    assert sampled.shape == (50, *codec.shape)
    assert all(action in space for action in codec.to_env(sampled.numpy()))
    policy, _ = model.policy(observations(50))
    assert policy.log_prob(sampled).shape == (50,)


UNSUPPORTED = {
    "text": spaces.Text(5),
    "sequence": spaces.Sequence(spaces.Discrete(2)),
    "graph": spaces.Graph(spaces.Box(0, 1, (2,)), None),
}


@pytest.mark.parametrize("space", UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
@pytest.mark.parametrize(
    "within",
    [lambda space: space, lambda space: spaces.Dict({"part": space, "more": spaces.Discrete(2)})],
    ids=["alone", "in a dict"],
)
def test_unsupported_observation_spaces_raise(
    space: Space[Any], within: Callable[[Space[Any]], Space[Any]]
) -> None:
    """One line names the space, alone or in a Dict."""
    with pytest.raises(errors.UserError, match=re.escape(str(space))) as error:
        ActorCritic(within(space), spaces.Discrete(2), Architecture())
    assert "\n" not in str(error.value)
    assert "observation space" in str(error.value)


@pytest.mark.parametrize(
    "space",
    [
        *UNSUPPORTED.values(),
        spaces.Box(0, 9, (2,), np.int64),
        spaces.Tuple([spaces.Discrete(2)]),
        spaces.Dict({"gas": spaces.Box(-1, 1, (2,))}),
    ],
    ids=[*UNSUPPORTED.keys(), "whole numbers", "tuple", "dict"],
)
def test_unsupported_action_spaces_raise(space: Space[Any]) -> None:
    """One line names the space."""
    with pytest.raises(errors.UserError, match=re.escape(str(space))) as error:
        ActorCritic(OBSERVATIONS, space, Architecture())
    assert "\n" not in str(error.value)
    assert "action space" in str(error.value)


def test_error_message_for_a_wide_space_is_one_line() -> None:
    """The space's own representation has several lines."""
    bounds = np.arange(1, 31)
    wide = spaces.Box(-bounds, bounds, dtype=np.int64)
    assert "\n" in str(wide)
    with pytest.raises(errors.UserError, match="Box") as error:
        ActorCritic(OBSERVATIONS, wide, Architecture())
    assert "\n" not in str(error.value)


@every_architecture
def test_same_seed_gives_same_parameters(architecture: Architecture) -> None:
    """Parameters depend only on the generator; another seed gives others."""
    first, second, other = make(architecture), make(architecture), make(architecture, seed=1)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.policy_head.logits.weight, other.policy_head.logits.weight)


def test_default_seed_is_fixed() -> None:
    """Without a generator, parameters do not depend on torch's global seed."""
    torch.manual_seed(1)
    first = ActorCritic(OBSERVATIONS, spaces.Discrete(2), Architecture())
    torch.manual_seed(2)
    second = ActorCritic(OBSERVATIONS, spaces.Discrete(2), Architecture())
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def linear_body(space: Space[Any]) -> nn.Module:
    """User-defined body with weights from torch's global generator."""
    return nn.Linear(INPUTS, 7)


def test_custom_body_is_initialized_from_the_seed() -> None:
    """The global generator of torch has no influence and is not advanced."""
    weights = []
    for seed, global_seed in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        weights.append(make(Architecture(network=linear_body), seed).policy_body.weight)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@every_architecture
def test_constructor_does_not_advance_the_global_generator(architecture: Architecture) -> None:
    before = torch.get_rng_state()
    make(architecture)
    assert torch.equal(torch.get_rng_state(), before)


@every_architecture
def test_initial_policy_is_nearly_uniform(architecture: Architecture) -> None:
    """Every action has a probability of 1/A to within 10 %; the entropy is log A."""
    model = make(architecture)
    inputs = observations(200)
    probabilities = log_probs(model, inputs).exp()
    torch.testing.assert_close(
        probabilities, torch.full_like(probabilities, 1 / ACTIONS), rtol=0.1, atol=0
    )
    policy, _ = model.policy(inputs)
    assert policy.entropy().min().item() == pytest.approx(math.log(ACTIONS), abs=0.01)


@every_architecture
def test_initial_weights_are_orthogonal_and_biases_zero(architecture: Architecture) -> None:
    """The gain is √2 before an activation, 0.01 for the policy head and 1 for the value head."""
    model = make(architecture)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    for name, layer in layers.items():
        gain = {"policy_head.logits": 0.01, "value_head": 1.0}.get(name, math.sqrt(2))
        assert_scaled_orthogonal(layer.weight, gain)
        assert not layer.bias.any()
    bodies = 1 if architecture.shared_trunk else 2
    assert len(layers) == bodies * len(architecture.hidden) + 2


def assert_scaled_orthogonal(weight: Tensor, gain: float) -> None:
    """Asserts W Wᵀ = gain² I, or Wᵀ W = gain² I if W has more rows than columns."""
    short = weight if weight.shape[0] <= weight.shape[1] else weight.T
    expected = gain**2 * torch.eye(len(short))
    torch.testing.assert_close(short @ short.T, expected, rtol=0, atol=1e-5 * gain**2)


@pytest.mark.parametrize(("activation", "function"), [("tanh", torch.tanh), ("relu", torch.relu)])
def test_mlp_equals_its_layers_in_sequence(
    activation: str, function: Callable[[Tensor], Tensor]
) -> None:
    body, inputs = layers.mlp(INPUTS, (7, 2), activation, generator()), observations(9)
    first, second = (m for m in body if isinstance(m, nn.Linear))
    hidden = function(inputs @ first.weight.T + first.bias)
    expected = function(hidden @ second.weight.T + second.bias)
    torch.testing.assert_close(body(inputs), expected)
