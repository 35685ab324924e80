"""Deterministic policies and their critics: plain chains of layers, finite differences, limits."""

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
PICTURE = spaces.Box(0, 255, (20, 24, 3), np.uint8)
ACTIONS = spaces.Box(-2, 3, (2,))
SIZES = (4, 7, 6, 3)


def stream(seed: int = 0) -> torch.Generator:
    """A random stream of its own."""
    return torch.Generator().manual_seed(seed)


class Own(nn.Module):
    """A caller's body for rows [T, B, *O], and for no others."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, 8)

    def forward(self, seen: Tensor) -> Tensor:
        """A linear layer."""
        T, B, *_ = seen.shape
        features: Tensor = self.layer(seen.reshape(T, B, -1).to(self.layer.weight.dtype)).tanh()
        return features


def own(space: Space[Any]) -> nn.Module:
    """A body for Box spaces."""
    return Own(math.prod(space.shape or ()))


EVERY: dict[str, tuple[Space[Any], Architecture]] = {
    "numbers": (VECTOR, Architecture(hidden=(7, 6))),
    "relu": (VECTOR, Architecture(hidden=(7,), activation="relu")),
    "no hidden layer": (VECTOR, Architecture(hidden=())),
    "pictures": (PICTURE, Architecture(hidden=(6,))),
    "small pictures": (spaces.Box(0, 255, (3, 4), np.uint8), Architecture(hidden=(6,))),
    "a dict": (spaces.Dict(a=PICTURE, b=VECTOR, c=spaces.Discrete(3)), Architecture(hidden=(6,))),
    "one's own": (VECTOR, Architecture(network=own, hidden=(6,))),
    "one's own for pictures": (PICTURE, Architecture(network=own, hidden=(6,))),
}
every = pytest.mark.parametrize(("space", "architecture"), EVERY.values(), ids=EVERY.keys())


@pytest.fixture
def doubles() -> Iterator[None]:
    """Everything is made and computed in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def rows(space: Space[Any], B: int) -> Tensor:
    """Rows [B, *O] of random observations."""
    codec = ObservationCodec.of(space)
    space.seed(3)
    found = torch.from_numpy(np.stack([codec.row(space.sample()) for _ in range(B)]))
    return found if found.dtype == torch.uint8 else found.to(torch.get_default_dtype())


def moved(module: nn.Module, std: float = 0.1) -> None:
    """Puts weights far from where they start, the last layers' too."""
    noise = stream(11)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise) * std)


def model_of(space: Space[Any], architecture: Architecture, N: int = 2) -> DeterministicActorCritic:
    return DeterministicActorCritic(space, ACTIONS, architecture, N, stream(1))


# Perceptrons.


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("N", [1, 3])
def test_each_perceptron_is_a_chain_of_linear_layers(N: int, activation: str) -> None:
    """And `only` gives that of the first so many."""
    layers = EnsembleMLP(N, SIZES, activation, stream())
    moved(layers, 0.5)
    inputs = torch.randn(9, SIZES[0], generator=stream(2))
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


def test_first_weights_are_uniform_in_their_bounds_and_differ() -> None:
    """±1/√fan-in, and ±0.003 in the last layer; the same for the same seed only."""
    N, sizes = 3, (16, 200, 100, 50)
    layers, again, other = (EnsembleMLP(N, sizes, "relu", stream(s)) for s in (0, 0, 1))
    bounds = [1 / 4, 1 / math.sqrt(200), 0.003]
    for weight, bias, bound in zip(layers.weights, layers.biases, bounds, strict=True):
        for i in range(N):
            for drawn in (weight[i].detach(), bias[i].detach()):
                assert 0.9 * bound < drawn.abs().max() <= bound
                error = bound / math.sqrt(3 * drawn.numel())
                assert drawn.mean().abs() < 4 * error
                assert drawn.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)
        assert len({tuple(weight[i].flatten().tolist()) for i in range(N)}) == N
        assert len({tuple(bias[i].flatten().tolist()) for i in range(N)}) == N
    for ours, same, theirs in zip(*(m.parameters() for m in (layers, again, other)), strict=True):
        assert torch.equal(ours, same)
        assert not torch.equal(ours, theirs)


# Policy and critics.


@every
def test_policy_and_critics_by_row(space: Space[Any], architecture: Architecture) -> None:
    """An action for each row, and a value for each critic and row, each of its row alone."""
    model, N, B = model_of(space, architecture, N=3), 3, 6
    seen, actions = rows(space, B), torch.rand(B, 2, generator=stream(2)) * 2 - 1
    moved(model)
    chosen, values = model.actor(seen), model.critics(seen, actions)
    assert (chosen.shape, values.shape) == ((B, 2), (N, B))
    assert chosen.dtype == values.dtype == torch.float32
    torch.testing.assert_close(model.critics.online.q1(seen, actions), values[0])
    policy, state = model.policy(seen)
    assert state is None
    assert torch.equal(policy.sample(stream()), chosen)
    assert torch.equal(policy.mode(), chosen)
    assert not policy.mode().requires_grad
    for b in range(B):
        alone = slice(b, b + 1)
        torch.testing.assert_close(model.actor(seen[alone]), chosen[alone])
        torch.testing.assert_close(model.critics(seen[alone], actions[alone]), values[:, alone])
    assert min(values.std(0).min(), chosen.std(0).min(), values.std(1).min()) > 1e-3
    assert (model.critics(seen, -actions) - values).abs().min() > 1e-6


@every
def test_the_policy_begins_in_the_middle_and_stays_in_its_bounds(
    space: Space[Any], architecture: Architecture
) -> None:
    """μ in −1..1 however large the weights."""
    model, seen = model_of(space, architecture), rows(space, 6)
    assert 0 < model.actor(seen).abs().max() < 0.1
    moved(model, 2.0)
    assert 0.9 < model.actor(seen).abs().max() <= 1


@pytest.mark.usefixtures("doubles")
@every
def test_gradients_are_those_of_finite_differences(
    space: Space[Any], architecture: Architecture
) -> None:
    """Of what critics and policy are trained for, by every tensor of parameters."""
    h, model = 1e-6, model_of(space, architecture)
    moved(model)
    seen, weights = rows(space, 4), torch.randn(2, 4, generator=stream(4))
    taken = torch.rand(4, 2, generator=stream(2)) * 2 - 1

    def scalar() -> Tensor:
        worth: Tensor = model.critics.online.q1(seen, model.actor(seen))
        values: Tensor = model.critics(seen, taken)
        return (weights * values).sum() + (weights[0] * worth).sum()

    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(trained) == {n for n, _ in model.named_parameters() if ".target." not in n}
    gradients = torch.autograd.grad(scalar(), list(trained.values()))
    picks, moving = stream(5), 0
    for (name, parameter), gradient in zip(trained.items(), gradients, strict=True):
        flat = parameter.detach().view(-1)
        for index in torch.randperm(len(flat), generator=picks)[:4].tolist():
            middle, ends = flat[index].item(), []
            for step in (h, -h):
                flat[index] = middle + step
                ends.append(scalar().item())
            flat[index] = middle
            expected = (ends[0] - ends[1]) / (2 * h)
            assert gradient.flatten()[index].item() == pytest.approx(expected, 1e-5, 1e-7), name
            moving += abs(expected) > 1e-4
    assert moving > 2 * len(trained)  # most of them not dead units


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("pictures", encoders.ConvEncoder),
        ("a dict", encoders.ConvEncoder),
        ("small pictures", encoders.PixelEncoder),
    ],
)
def test_critics_share_one_eye_and_the_policy_has_another(name: str, kind: type) -> None:
    model, eyes = model_of(*EVERY[name], N=3), []
    for tracked in (model.actor, model.critics):
        parts: list[nn.Module] = list(tracked.online.modules())
        eyes += [
            part for part in parts if isinstance(part, encoders.ConvEncoder | encoders.PixelEncoder)
        ]
    assert [type(eye) for eye in eyes] == [kind, kind]
    first, second = ({p.data_ptr() for p in eye.parameters()} for eye in eyes)
    assert bool(first) == (kind is encoders.ConvEncoder)
    assert not first & second


def test_spaces_of_actions_that_are_no_vector() -> None:
    """A matrix of numbers, and a single one."""
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
    ids=["discrete", "bits", "bytes", "no bounds", "none above", "one is none, on many lines"],
)
def test_other_spaces_of_actions_are_refused_on_one_line(space: Space[Any]) -> None:
    with pytest.raises(UserError) as refusal:
        DeterministicActorCritic(VECTOR, space, Architecture(), 2)
    message = str(refusal.value)
    assert message.startswith(f"action space {' '.join(str(space).split())} is not supported: ")
    assert "\n" not in message
    assert "Box of floats" in message


# Slow copies.


@every
def test_slow_copies_start_equal_and_are_not_trained(
    space: Space[Any], architecture: Architecture
) -> None:
    """They have memory of their own, and no gradient reaches them."""
    model = model_of(space, architecture)
    seen, actions = rows(space, 3), torch.zeros(3, 2)
    for tracked, inputs in ((model.actor, (seen,)), (model.critics, (seen, actions))):
        pairs = list(zip(tracked.online.parameters(), tracked.target.parameters(), strict=True))
        assert all(torch.equal(p, copied) for p, copied in pairs)
        assert all(p.requires_grad and not copied.requires_grad for p, copied in pairs)
        assert not any(p.data_ptr() == copied.data_ptr() for p, copied in pairs)
        assert torch.equal(tracked(*inputs), tracked.target(*inputs))
        assert not tracked.target(*inputs).requires_grad
        moved(tracked.online)
        assert not torch.equal(tracked(*inputs), tracked.target(*inputs))


@every
@pytest.mark.parametrize("tau", [0.0, 0.25, 1.0])
def test_a_copy_follows_by_its_share(
    space: Space[Any], architecture: Architecture, tau: float
) -> None:
    """θ' ← (1 − τ) θ' + τ θ in every tensor of the copy: not at all for 0, at once for 1."""
    model = model_of(space, architecture)
    for tracked in (model.actor, model.critics):
        shared: SharedModel[WithTarget[Any]] = SharedModel(tracked)
        moved(tracked.online)
        online, target = copy.deepcopy(tracked.online), copy.deepcopy(tracked.target)
        polyak_update_(shared.flat, tau)
        for name, now in tracked.target.named_parameters():
            p, before = online.get_parameter(name), target.get_parameter(name)
            torch.testing.assert_close(now, before + tau * (p - before), check_stride=False)
            assert not torch.equal(p, before)
            assert tau != 0 or torch.equal(now, before)
            assert tau != 1 or torch.equal(now, p)
        for name, now in tracked.online.named_parameters():
            assert torch.equal(now, online.get_parameter(name))
