"""Tests of policy heads, which map features to action distributions of every space."""

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
DISTRIBUTIONS = {
    spaces.Discrete: distributions.Categorical,
    spaces.MultiDiscrete: distributions.MultiCategorical,
    spaces.MultiBinary: distributions.Bernoulli,
    spaces.Box: distributions.Gaussian,
}
HEADS = [(name, False) for name in SPACES] + [(n, True) for n in SPACES if n.startswith("box")]
every_head = pytest.mark.parametrize(("name", "state_dependent_std"), HEADS)


def generator(seed: int = 0) -> torch.Generator:
    """Seeded random generator."""
    return torch.Generator().manual_seed(seed)


def make(name: str, state_dependent_std: bool = False, **settings: Any) -> nn.Module:
    """Head for five features."""
    settings = {"state_dependent_std": state_dependent_std, **settings}
    return head(SPACES[name], FEATURES, generator(), **settings)


def randomized(module: nn.Module) -> nn.Module:
    """Converts a head to float64 and randomizes its parameters."""
    stream = generator(1)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.5, generator=stream)
    return module


def features(*shape: int) -> Tensor:
    """Standard normal features, in float64."""
    return torch.randn(*shape, FEATURES, generator=generator(2), dtype=torch.float64)


@every_head
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_actions_match_the_codec(
    name: str, state_dependent_std: bool, shape: tuple[int, ...]
) -> None:
    """For features [..., F], actions have the codec's shape and dtype and convert to the space."""
    policy = make(name, state_dependent_std)(features(*shape).float())
    assert type(policy) is DISTRIBUTIONS[type(SPACES[name])]
    codec = ActionCodec.of(SPACES[name])
    for actions in (policy.sample(generator()), policy.mode()):
        assert actions.shape == (*shape, *codec.shape)
        assert actions.numpy().dtype == codec.dtype
        converted = codec.to_env(actions.reshape(-1, *codec.shape).numpy())
        assert all(SPACES[name].contains(np.asarray(row)) for row in converted)
        assert policy.log_prob(actions).shape == shape
    assert policy.entropy().shape == shape


@every_head
def test_gradients_equal_finite_differences(name: str, state_dependent_std: bool) -> None:
    """Log-probability and entropy, with respect to the features and every parameter."""
    module = randomized(make(name, state_dependent_std))
    names, values = zip(*module.named_parameters(), strict=True)
    inputs = features(2, 3).requires_grad_()
    actions = module(inputs).sample(generator())

    def quantities(inputs: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        parameters = dict(zip(names, values, strict=True))
        policy = torch.func.functional_call(module, parameters, inputs)
        return policy.log_prob(actions), policy.entropy()

    assert torch.autograd.gradcheck(quantities, (inputs, *values))


@every_head
def test_log_prob_has_a_gradient_of_every_parameter(name: str, state_dependent_std: bool) -> None:
    module = randomized(make(name, state_dependent_std))
    policy = module(features(2, 3))
    policy.log_prob(policy.sample(generator())).sum().backward()
    assert all(parameter.grad.any() for parameter in module.parameters())


@every_head
def test_rows_are_independent(name: str, state_dependent_std: bool) -> None:
    module, inputs = randomized(make(name, state_dependent_std)), features(2, 3)
    together = module(inputs)
    actions = together.sample(generator())
    for t in range(2):
        alone = module(inputs[t])
        torch.testing.assert_close(alone.log_prob(actions[t]), together.log_prob(actions)[t])
        torch.testing.assert_close(alone.entropy(), together.entropy()[t])
    assert together.log_prob(actions).std().item() > 0.1


@every_head
def test_pickled_heads_and_replicas_compute_the_same(name: str, state_dependent_std: bool) -> None:
    module, inputs = make(name, state_dependent_std), features(3).float()
    expected = module(inputs).sample(generator())
    copies = [pickle.loads(pickle.dumps(module)), SharedModel(module).replica().module]
    for copy in copies:
        assert torch.equal(copy(inputs).sample(generator()), expected)
        assert torch.equal(copy(inputs).log_prob(expected), module(inputs).log_prob(expected))


def test_categorical_head_is_one_linear_layer() -> None:
    """Its weights are those of the layer with the same seed."""
    module, layer = make("discrete"), layers.linear(FEATURES, 4, 0.01, generator())
    assert [p.tolist() for p in module.parameters()] == [p.tolist() for p in layer.parameters()]
    inputs, actions = features(3).float(), torch.tensor([3, 1, 0])
    expected = distributions.Categorical(layer(inputs)).log_prob(actions)
    assert torch.equal(module(inputs).log_prob(actions), expected)


@every_head
def test_initial_policy_is_nearly_uniform(name: str, state_dependent_std: bool) -> None:
    """Discrete actions are nearly uniform; means are near 0 and standard deviations near 1."""
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
def test_initial_log_std_is_the_setting(state_dependent_std: bool) -> None:
    """Log σ = −1.5 at features of 0, in each of three dimensions."""
    module = make("box", state_dependent_std, log_std_init=-1.5)
    entropy = module(torch.zeros(FEATURES)).entropy()
    assert entropy.item() == pytest.approx(3 * (-1.5 + 0.5 * (1 + math.log(2 * math.pi))))


def test_std_depends_on_the_state_only_if_set() -> None:
    """The default is one parameter per dimension; state-dependent is a second linear layer."""
    independent, linear = randomized(make("box")), randomized(make("box", True))
    assert independent(features(9)).entropy().std().item() == 0
    assert linear(features(9)).entropy().std().item() > 0.1
    sizes = [sum(p.numel() for p in module.parameters()) for module in (independent, linear)]
    assert sizes == [3 * FEATURES + 3 + 3, 2 * (3 * FEATURES + 3)]


def test_state_dependent_log_std_is_clamped() -> None:
    """Large features give LOG_STD_MIN and LOG_STD_MAX; a state-independent log σ has no bounds."""
    module = randomized(make("box single", True))
    constant = 0.5 * (1 + math.log(2 * math.pi))
    inputs = 1e6 * module.log_std.weight.detach()[0]
    for sign, bound in ((-1, LOG_STD_MIN), (1, LOG_STD_MAX)):
        assert module(sign * inputs).entropy().item() == pytest.approx(bound + constant)
    free = make("box single", log_std_init=5.0)
    assert free(torch.zeros(FEATURES)).entropy().item() == pytest.approx(5 + constant)


@pytest.mark.parametrize("value", [LOG_STD_MIN, LOG_STD_MAX, 5.0, math.nan])
def test_initial_log_std_at_or_beyond_its_bounds_raises(value: float) -> None:
    """A clamped log σ has no gradient."""
    with pytest.raises(errors.UserError, match=f"between -20 and 2, got {value}"):
        make("box", True, log_std_init=value)


@pytest.mark.parametrize("space", [spaces.Text(5), spaces.Box(0, 255, (2,), np.uint8)])
def test_unsupported_spaces_raise(space: Space[Any]) -> None:
    """The message names the space."""
    with pytest.raises(errors.UserError, match=re.escape(str(space))):
        head(space, FEATURES, generator())
