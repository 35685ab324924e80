"""Heads: from features to distributions over the actions of every space."""

import math
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import Space, spaces
from torch import Tensor, nn

from hogwild_rl import errors
from hogwild_rl.envs.codecs import ActionCodec
from hogwild_rl.hogwild.shared_model import SharedModel
from hogwild_rl.models import distributions, layers
from hogwild_rl.models.distributions import LOG_STD_MAX, LOG_STD_MIN, head

FEATURES = 5
SPACES = {
    "discrete": spaces.Discrete(4),
    "from 3": spaces.Discrete(4, start=3),
    "multidiscrete": spaces.MultiDiscrete([3, 3, 2]),
    "multidiscrete matrix": spaces.MultiDiscrete([[2, 5, 3], [4, 1, 2]], start=np.full((2, 3), 2)),
    "multibinary": spaces.MultiBinary(4),
    "multibinary matrix": spaces.MultiBinary([2, 3]),
    "box": spaces.Box(-1, 1, (3,)),
    "box matrix": spaces.Box(-np.inf, np.inf, (2, 3), np.float64),
    "box single": spaces.Box(0, 5, ()),
}
KINDS = {
    spaces.Discrete: distributions.Categorical,
    spaces.MultiDiscrete: distributions.MultiCategorical,
    spaces.MultiBinary: distributions.Bernoulli,
    spaces.Box: distributions.Gaussian,
}
HEADS = [(name, False) for name in SPACES] + [(n, True) for n in SPACES if n.startswith("box")]
every_head = pytest.mark.parametrize(("name", "state_dependent_std"), HEADS)


def stream(seed: int = 0) -> torch.Generator:
    """A random stream of its own."""
    return torch.Generator().manual_seed(seed)


def make(name: str, state_dependent_std: bool = False, **settings: Any) -> nn.Module:
    """A head for five features."""
    settings = {"state_dependent_std": state_dependent_std, **settings}
    return head(SPACES[name], FEATURES, stream(), **settings)


def trained(module: nn.Module) -> nn.Module:
    """The head with parameters that are far from their starting values, in float64."""
    generator = stream(1)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return module


def features(*shape: int) -> Tensor:
    """Standard normal features, in float64."""
    return torch.randn(*shape, FEATURES, generator=stream(2), dtype=torch.float64)


@every_head
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_actions_are_what_the_codec_takes(
    name: str, state_dependent_std: bool, shape: tuple[int, ...]
) -> None:
    """For features [..., F] they have its shape and dtype, and become actions of the space."""
    policy = make(name, state_dependent_std)(features(*shape).float())
    assert type(policy) is KINDS[type(SPACES[name])]
    codec = ActionCodec.of(SPACES[name])
    for drawn in (policy.sample(stream()), policy.mode()):
        assert drawn.shape == (*shape, *codec.shape)
        assert drawn.numpy().dtype == codec.dtype
        taken = codec.to_env(drawn.reshape(-1, *codec.shape).numpy())
        assert all(SPACES[name].contains(np.asarray(row)) for row in taken)
        assert policy.log_prob(drawn).shape == shape
    assert policy.entropy().shape == shape


@every_head
def test_gradients_are_the_finite_differences(name: str, state_dependent_std: bool) -> None:
    """Of log-probability and entropy, by the features and by every parameter."""
    module = trained(make(name, state_dependent_std))
    names, values = zip(*module.named_parameters(), strict=True)
    seen = features(2, 3).requires_grad_()
    actions = module(seen).sample(stream())

    def quantities(seen: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        parameters = dict(zip(names, values, strict=True))
        policy = torch.func.functional_call(module, parameters, seen)
        return policy.log_prob(actions), policy.entropy()

    assert torch.autograd.gradcheck(quantities, (seen, *values))


@every_head
def test_every_parameter_learns(name: str, state_dependent_std: bool) -> None:
    """The gradient of log-probability reaches all of them."""
    module = trained(make(name, state_dependent_std))
    policy = module(features(2, 3))
    policy.log_prob(policy.sample(stream())).sum().backward()
    assert all(parameter.grad.any() for parameter in module.parameters())


@every_head
def test_rows_are_computed_apart(name: str, state_dependent_std: bool) -> None:
    """A row's distribution is that of its features alone."""
    module, seen = trained(make(name, state_dependent_std)), features(2, 3)
    together = module(seen)
    actions = together.sample(stream())
    for t in range(2):
        alone = module(seen[t])
        torch.testing.assert_close(alone.log_prob(actions[t]), together.log_prob(actions)[t])
        torch.testing.assert_close(alone.entropy(), together.entropy()[t])
    assert together.log_prob(actions).std().item() > 0.1


@every_head
def test_heads_travel(name: str, state_dependent_std: bool) -> None:
    """Pickled, and through shared memory to a worker's replica, they compute the same."""
    module, seen = make(name, state_dependent_std), features(3).float()
    expected = module(seen).sample(stream())
    copies = [pickle.loads(pickle.dumps(module)), SharedModel(module).replica().module]
    for copy in copies:
        assert torch.equal(copy(seen).sample(stream()), expected)
        assert torch.equal(copy(seen).log_prob(expected), module(seen).log_prob(expected))


def test_logits_are_one_linear_layer() -> None:
    """A Categorical's weights are drawn as the layer's alone would be."""
    module, layer = make("discrete"), layers.linear(FEATURES, 4, 0.01, stream())
    assert [p.tolist() for p in module.parameters()] == [p.tolist() for p in layer.parameters()]
    seen, actions = features(3).float(), torch.tensor([3, 1, 0])
    expected = distributions.Categorical(layer(seen)).log_prob(actions)
    assert torch.equal(module(seen).log_prob(actions), expected)


@every_head
def test_the_first_policy_hardly_prefers(name: str, state_dependent_std: bool) -> None:
    """Choices and bits start nearly uniform, means near 0 and deviations near 1."""
    space, policy = SPACES[name], make(name, state_dependent_std)(features(20).float())
    if isinstance(space, spaces.Box):
        assert policy.mode().abs().max().item() < 0.05
        expected = math.prod(space.shape) * 0.5 * (1 + math.log(2 * math.pi))
    elif isinstance(space, spaces.MultiDiscrete):
        expected = float(np.log(space.nvec).sum())
    else:
        choices = 4 if isinstance(space, spaces.Discrete) else 2 ** math.prod(space.shape or ())
        expected = math.log(choices)
    entropies = policy.entropy()
    torch.testing.assert_close(entropies, torch.full_like(entropies, expected), rtol=0, atol=0.1)


@pytest.mark.parametrize("state_dependent_std", [False, True])
def test_the_deviation_starts_where_it_is_set(state_dependent_std: bool) -> None:
    """Log σ = −1.5 at features of 0, in each of three dimensions."""
    module = make("box", state_dependent_std, log_std_init=-1.5)
    entropy = module(torch.zeros(FEATURES)).entropy()
    assert entropy.item() == pytest.approx(3 * (-1.5 + 0.5 * (1 + math.log(2 * math.pi))))


def test_the_deviation_depends_on_the_state_only_where_set_so() -> None:
    """By default one parameter for each dimension; otherwise a second linear layer."""
    apart, linear = trained(make("box")), trained(make("box", True))
    assert apart(features(9)).entropy().std().item() == 0
    assert linear(features(9)).entropy().std().item() > 0.1
    sizes = [sum(p.numel() for p in module.parameters()) for module in (apart, linear)]
    assert sizes == [3 * FEATURES + 3 + 3, 2 * (3 * FEATURES + 3)]


def test_a_deviation_by_the_state_stays_in_its_range() -> None:
    """Huge features give LOG_STD_MIN and LOG_STD_MAX; a deviation without state has no bounds."""
    module = trained(make("box single", True))
    constant = 0.5 * (1 + math.log(2 * math.pi))
    seen = 1e6 * module.log_std.weight.detach()[0]
    for sign, bound in ((-1, LOG_STD_MIN), (1, LOG_STD_MAX)):
        assert module(sign * seen).entropy().item() == pytest.approx(bound + constant)
    free = make("box single", log_std_init=5.0)
    assert free(torch.zeros(FEATURES)).entropy().item() == pytest.approx(5 + constant)


@pytest.mark.parametrize("value", [LOG_STD_MIN, LOG_STD_MAX, 5.0, math.nan])
def test_a_start_that_could_not_learn_is_refused(value: float) -> None:
    """At the ends of its range and beyond, log σ has no gradient."""
    with pytest.raises(errors.UserError, match=f"between -20 and 2, got {value}"):
        make("box", True, log_std_init=value)


@pytest.mark.parametrize("space", [spaces.Text(5), spaces.Box(0, 255, (2,), np.uint8)])
def test_other_spaces_are_refused(space: Space[Any]) -> None:
    """The message names the space."""
    with pytest.raises(errors.UserError, match=re.escape(str(space))):
        head(space, FEATURES, stream())
