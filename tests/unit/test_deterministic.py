"""Tests of deterministic policies and critics: layers, gradients and target networks."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import Space, spaces
from torch import Tensor, nn
from torch.nn import functional

from hogwild_rl.envs.codecs import ObservationCodec
from hogwild_rl.errors import UserError
from hogwild_rl.hogwild.shared_model import SharedModel
from hogwild_rl.models import encoders
from hogwild_rl.models.actor_critic import Architecture
from hogwild_rl.models.deterministic import (
    DeterministicActorCritic,
    EnsembleMLP,
    WithTarget,
    polyak_update_,
)

VECTOR = spaces.Box(-np.inf, np.inf, (5,), np.float64)
IMAGE = spaces.Box(0, 255, (20, 24, 3), np.uint8)
ACTIONS = spaces.Box(-2, 3, (2,))
SIZES = (4, 7, 6, 3)


def generator(seed: int = 0) -> torch.Generator:
    """Seeded random generator."""
    return torch.Generator().manual_seed(seed)


class CustomBody(nn.Module):
    """User-defined body that accepts only rows [T, B, *O]."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        """Linear layer and tanh."""
        T, B, *_ = inputs.shape
        features: Tensor = self.layer(inputs.reshape(T, B, -1).to(self.layer.weight.dtype)).tanh()
        return features


def custom_body(space: Space[Any]) -> nn.Module:
    """Body for Box spaces."""
    return CustomBody(math.prod(space.shape or ()))


CASES: dict[str, tuple[Space[Any], Architecture]] = {
    "vector": (VECTOR, Architecture(hidden=(7, 6))),
    "relu": (VECTOR, Architecture(hidden=(7,), activation="relu")),
    "no hidden layer": (VECTOR, Architecture(hidden=())),
    "images": (IMAGE, Architecture(hidden=(6,))),
    "small images": (spaces.Box(0, 255, (16, 17), np.uint8), Architecture(hidden=(6,))),
    "dict": (spaces.Dict(a=IMAGE, b=VECTOR, c=spaces.Discrete(3)), Architecture(hidden=(6,))),
    "custom": (VECTOR, Architecture(network=custom_body, hidden=(6,))),
    "custom for images": (IMAGE, Architecture(network=custom_body, hidden=(6,))),
}
every_case = pytest.mark.parametrize(("space", "architecture"), CASES.values(), ids=CASES.keys())


@pytest.fixture
def doubles() -> Iterator[None]:
    """Sets float64 as the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def rows(space: Space[Any], B: int) -> Tensor:
    """Random observations, [B, *O]."""
    codec = ObservationCodec.of(space)
    space.seed(3)
    found = torch.from_numpy(np.stack([codec.row(space.sample()) for _ in range(B)]))
    return found if found.dtype == torch.uint8 else found.to(torch.get_default_dtype())


def perturb(module: nn.Module, std: float = 0.1) -> None:
    """Adds noise to all parameters, as those of the last layers are near zero."""
    noise = generator(11)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise) * std)


def model_of(space: Space[Any], architecture: Architecture, N: int = 2) -> DeterministicActorCritic:
    return DeterministicActorCritic(space, ACTIONS, architecture, N, generator(1))


# EnsembleMLP.


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("N", [1, 3])
def test_each_mlp_of_an_ensemble_equals_its_linear_layers(N: int, activation: str) -> None:
    """`only=n` computes the first n MLPs."""
    layers = EnsembleMLP(N, SIZES, activation, generator())
    perturb(layers, 0.5)
    inputs = torch.randn(9, SIZES[0], generator=generator(2))
    found = layers(inputs)
    assert found.shape == (N, 9, SIZES[-1])
    for i in range(N):
        expected = inputs
        for depth, (weight, bias) in enumerate(zip(layers.weights, layers.biases, strict=True)):
            expected = functional.linear(expected, weight[i].T, bias[i, 0])
            if depth < len(SIZES) - 2:
                expected = getattr(torch, activation)(expected)
        torch.testing.assert_close(found[i], expected)
    for only in range(1, N + 1):
        torch.testing.assert_close(layers(inputs, only=only), found[:only])


def test_initial_weights_are_uniform_and_differ_between_mlps() -> None:
    """Bounds: ±1/√fan-in, and ±0.003 in the last layer. Only equal seeds give equal weights."""
    N, sizes = 3, (16, 200, 100, 50)
    layers, again, other = (EnsembleMLP(N, sizes, "relu", generator(s)) for s in (0, 0, 1))
    bounds = [1 / 4, 1 / math.sqrt(200), 0.003]
    for weight, bias, bound in zip(layers.weights, layers.biases, bounds, strict=True):
        for i in range(N):
            for values in (weight[i].detach(), bias[i].detach()):
                assert 0.9 * bound < values.abs().max() <= bound
                error = bound / math.sqrt(3 * values.numel())
                assert values.mean().abs() < 4 * error
                assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)
        assert len({tuple(weight[i].flatten().tolist()) for i in range(N)}) == N
        assert len({tuple(bias[i].flatten().tolist()) for i in range(N)}) == N
    for ours, same, theirs in zip(*(m.parameters() for m in (layers, again, other)), strict=True):
        assert torch.equal(ours, same)
        assert not torch.equal(ours, theirs)


# Policy and critics.


@every_case
def test_policy_and_critics_are_row_wise(space: Space[Any], architecture: Architecture) -> None:
    """Actions are [B, A], values [N, B]; each depends on its row alone."""
    model, N, B = model_of(space, architecture, N=3), 3, 6
    inputs, actions = rows(space, B), torch.rand(B, 2, generator=generator(2)) * 2 - 1
    perturb(model)
    selected, values = model.actor(inputs), model.critics(inputs, actions)
    assert (selected.shape, values.shape) == ((B, 2), (N, B))
    assert selected.dtype == values.dtype == torch.float32
    torch.testing.assert_close(model.critics.online.q1(inputs, actions), values[0])
    policy, state = model.policy(inputs)
    assert state is None
    assert torch.equal(policy.sample(generator()), selected)
    assert torch.equal(policy.mode(), selected)
    assert not policy.mode().requires_grad
    for b in range(B):
        row = slice(b, b + 1)
        torch.testing.assert_close(model.actor(inputs[row]), selected[row])
        torch.testing.assert_close(model.critics(inputs[row], actions[row]), values[:, row])
    assert min(values.std(0).min(), selected.std(0).min(), values.std(1).min()) > 1e-3
    assert (model.critics(inputs, -actions) - values).abs().min() > 1e-6


@every_case
def test_policy_starts_near_zero_and_stays_within_bounds(
    space: Space[Any], architecture: Architecture
) -> None:
    """μ is in [−1, 1] for any weights."""
    model, inputs = model_of(space, architecture), rows(space, 6)
    assert 0 < model.actor(inputs).abs().max() < 0.1
    perturb(model, 2.0)
    assert 0.9 < model.actor(inputs).abs().max() <= 1


@pytest.mark.usefixtures("doubles")
@every_case
def test_gradients_equal_finite_differences(space: Space[Any], architecture: Architecture) -> None:
    """Checks four elements of every trained tensor."""
    h, model = 1e-6, model_of(space, architecture)
    perturb(model)
    inputs, weights = rows(space, 4), torch.randn(2, 4, generator=generator(4))
    actions = torch.rand(4, 2, generator=generator(2)) * 2 - 1

    def scalar() -> Tensor:
        q1: Tensor = model.critics.online.q1(inputs, model.actor(inputs))
        values: Tensor = model.critics(inputs, actions)
        return (weights * values).sum() + (weights[0] * q1).sum()

    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(trained) == {n for n, _ in model.named_parameters() if ".target." not in n}
    gradients = torch.autograd.grad(scalar(), list(trained.values()))
    index_generator, nonzero = generator(5), 0
    for (name, parameter), gradient in zip(trained.items(), gradients, strict=True):
        flat = parameter.detach().view(-1)
        for index in torch.randperm(len(flat), generator=index_generator)[:4].tolist():
            middle, ends = flat[index].item(), []
            for step in (h, -h):
                flat[index] = middle + step
                ends.append(scalar().item())
            flat[index] = middle
            expected = (ends[0] - ends[1]) / (2 * h)
            assert gradient.flatten()[index].item() == pytest.approx(expected, 1e-5, 1e-7), name
            nonzero += abs(expected) > 1e-4
    assert nonzero > 2 * len(trained)  # most units are not dead


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("images", encoders.ConvEncoder),
        ("dict", encoders.ConvEncoder),
        ("small images", encoders.PixelEncoder),
    ],
)
def test_critics_share_one_encoder_and_the_policy_has_another(name: str, expected: type) -> None:
    model, found = model_of(*CASES[name], N=3), []
    for targeted in (model.actor, model.critics):
        parts: list[nn.Module] = list(targeted.online.modules())
        found += [
            part for part in parts if isinstance(part, encoders.ConvEncoder | encoders.PixelEncoder)
        ]
    assert [type(encoder) for encoder in found] == [expected, expected]
    first, second = ({p.data_ptr() for p in encoder.parameters()} for encoder in found)
    assert bool(first) == (expected is encoders.ConvEncoder)
    assert not first & second


def test_actions_of_matrix_and_scalar_boxes_are_flattened() -> None:
    for shape, A in (((2, 3), 6), ((), 1)):
        model = DeterministicActorCritic(VECTOR, spaces.Box(-1, 1, shape), Architecture(), 2)
        assert model.actor(rows(VECTOR, 4)).shape == (4, A)
        assert model.critics(rows(VECTOR, 4), torch.zeros(4, A)).shape == (2, 4)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(4),
        spaces.MultiBinary(3),
        spaces.Box(0, 255, (2,), np.uint8),
        spaces.Box(-np.inf, np.inf, (2,)),
        spaces.Box(0, np.inf, (2,)),
        spaces.Box(np.array([-np.inf, *range(40)], np.float32), np.full(41, 99, np.float32)),
    ],
    ids=["discrete", "bits", "bytes", "no bounds", "no upper bound", "one of many unbounded"],
)
def test_unsupported_action_spaces_raise_with_one_line(space: Space[Any]) -> None:
    with pytest.raises(UserError) as error:
        DeterministicActorCritic(VECTOR, space, Architecture(), 2)
    message = str(error.value)
    assert message.startswith(f"action space {' '.join(str(space).split())} is not supported: ")
    assert "\n" not in message
    assert "Box of floats" in message


# Target networks.


@every_case
def test_target_networks_start_equal_and_have_no_gradient(
    space: Space[Any], architecture: Architecture
) -> None:
    """They share no memory with the online networks."""
    model = model_of(space, architecture)
    batch, actions = rows(space, 3), torch.zeros(3, 2)
    for targeted, inputs in ((model.actor, (batch,)), (model.critics, (batch, actions))):
        pairs = list(zip(targeted.online.parameters(), targeted.target.parameters(), strict=True))
        assert all(torch.equal(p, target) for p, target in pairs)
        assert all(p.requires_grad and not target.requires_grad for p, target in pairs)
        assert not any(p.data_ptr() == target.data_ptr() for p, target in pairs)
        assert torch.equal(targeted(*inputs), targeted.target(*inputs))
        assert not targeted.target(*inputs).requires_grad
        perturb(targeted.online)
        assert not torch.equal(targeted(*inputs), targeted.target(*inputs))


@every_case
@pytest.mark.parametrize("tau", [0.0, 0.25, 1.0])
def test_polyak_update_moves_target_networks_by_tau(
    space: Space[Any], architecture: Architecture, tau: float
) -> None:
    """θ' ← (1 − τ) θ' + τ θ in every tensor of the target network, and no change to θ."""
    model = model_of(space, architecture)
    for targeted in (model.actor, model.critics):
        shared: SharedModel[WithTarget[Any]] = SharedModel(targeted)
        perturb(targeted.online)
        online, target = copy.deepcopy(targeted.online), copy.deepcopy(targeted.target)
        polyak_update_(shared.flat, tau)
        for name, parameter in targeted.target.named_parameters():
            p, before = online.get_parameter(name), target.get_parameter(name)
            torch.testing.assert_close(parameter, before + tau * (p - before), check_stride=False)
            assert not torch.equal(p, before)
            assert tau != 0 or torch.equal(parameter, before)
            assert tau != 1 or torch.equal(parameter, p)
        for name, parameter in targeted.online.named_parameters():
            assert torch.equal(parameter, online.get_parameter(name))
