"""Tests of action distributions against torch.distributions, and of sample frequencies."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from hogwild_rl.models.distributions import (
    Bernoulli,
    Categorical,
    Gaussian,
    MultiCategorical,
    StochasticDistribution,
)

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}
LEADING = [(), (4,), (3, 4)]


class TorchMultiCategorical:
    """Product of torch's Categoricals."""

    def __init__(self, logits: Tensor, sizes: Sequence[int]) -> None:
        parts = logits.split(list(sizes), -1)
        self._parts = [torch.distributions.Categorical(logits=part) for part in parts]

    def log_prob(self, actions: Tensor) -> Tensor:
        pairs = zip(self._parts, actions.unbind(-1), strict=True)
        return torch.stack([part.log_prob(taken) for part, taken in pairs]).sum(0)

    def entropy(self) -> Tensor:
        return torch.stack([part.entropy() for part in self._parts]).sum(0)

    @property
    def mode(self) -> Tensor:
        return torch.stack([part.mode for part in self._parts], -1)


class TorchBernoulli(torch.distributions.Bernoulli):
    """torch's Bernoulli for integer actions."""

    def log_prob(self, value: Tensor) -> Tensor:
        found: Tensor = super().log_prob(value.to(self.logits.dtype))
        return found


@dataclasses.dataclass(frozen=True)
class Case:
    """Distribution of the package and the corresponding one of torch.

    Attributes:
        ours, theirs: functions that create the two distributions from their parameters.
        shapes: shapes of the parameters.
        actions: shape of the actions.
        below: number of actions of each component; None if actions are real numbers.
        center, spread: mean and standard deviation of the parameters in the tests.
    """

    ours: Callable[..., StochasticDistribution]
    theirs: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    actions: tuple[int, ...]
    below: int | tuple[int, ...] | None
    center: float = 0
    spread: float = 1

    def parameters(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Returns random parameters, leaves that require a gradient."""
        generator = torch.Generator().manual_seed(0)
        noise = [torch.randn(shape, generator=generator, dtype=dtype) for shape in self.shapes]
        return [(self.center + self.spread * each).requires_grad_() for each in noise]

    def random_actions(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns random actions, which do not depend on the parameters."""
        generator = torch.Generator().manual_seed(1)
        if self.below is None:
            return torch.randn(self.actions, generator=generator, dtype=dtype)
        return (torch.rand(self.actions, generator=generator) * torch.tensor(self.below)).long()


def categorical(leading: tuple[int, ...], size: int) -> Case:
    theirs = lambda logits: torch.distributions.Categorical(logits=logits)
    return Case(Categorical, theirs, ((*leading, size),), leading, size, center=7, spread=3)


def multi_categorical(leading: tuple[int, ...], sizes: tuple[int, ...]) -> Case:
    ours = lambda logits: MultiCategorical(logits, sizes)
    theirs = lambda logits: TorchMultiCategorical(logits, sizes)
    shape, actions = (*leading, sum(sizes)), (*leading, len(sizes))
    return Case(ours, theirs, (shape,), actions, sizes, center=7, spread=3)


def bernoulli(leading: tuple[int, ...], size: int) -> Case:
    theirs = lambda logits: torch.distributions.Independent(TorchBernoulli(logits=logits), 1)
    shape = (*leading, size)
    return Case(Bernoulli, theirs, (shape,), shape, 2, spread=3)


def gaussian(leading: tuple[int, ...], size: int, state_dependent: bool) -> Case:
    normal = lambda mean, log_std: torch.distributions.Normal(mean, log_std.exp())
    theirs = lambda mean, log_std: torch.distributions.Independent(normal(mean, log_std), 1)
    shape = (*leading, size)
    return Case(Gaussian, theirs, (shape, shape if state_dependent else (size,)), shape, None)


CASES = {
    f"{name}-{'x'.join(map(str, leading)) or 'one'}": make(leading)
    for leading in LEADING
    for name, make in {
        "categorical-6": lambda leading: categorical(leading, 6),
        "categorical-1": lambda leading: categorical(leading, 1),
        "multi-5": lambda leading: multi_categorical(leading, (5,)),
        "multi-444": lambda leading: multi_categorical(leading, (4, 4, 4)),
        "multi-3325": lambda leading: multi_categorical(leading, (3, 3, 2, 5)),
        "multi-2112": lambda leading: multi_categorical(leading, (2, 1, 1, 2)),
        "bernoulli-1": lambda leading: bernoulli(leading, 1),
        "bernoulli-5": lambda leading: bernoulli(leading, 5),
        "gaussian-1": lambda leading: gaussian(leading, 1, state_dependent=False),
        "gaussian-3": lambda leading: gaussian(leading, 3, state_dependent=False),
        "gaussian-3s": lambda leading: gaussian(leading, 3, state_dependent=True),
    }.items()
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
every_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=["float32", "float64"])


def assert_close(found: Any, expected: Any, dtype: torch.dtype) -> None:
    """Asserts equal shapes, and equal values up to rounding."""
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    """Σ (observed − expected)² / expected."""
    expected = counts.sum() * probabilities
    return float(((counts - expected).square() / expected).sum())


def p_value(counts: Tensor, probabilities: Tensor) -> float:
    """p-value of the χ² test of the counts against the probabilities."""
    half_freedom = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    half_square = torch.tensor(chi_square(counts, probabilities) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half_freedom, half_square))


@every_case
@every_dtype
def test_log_prob_equals_torch_s(case: Case, dtype: torch.dtype) -> None:
    """One log-probability per state, for any actions."""
    parameters, actions = case.parameters(dtype), case.random_actions(dtype)
    found = case.ours(*parameters).log_prob(actions)
    assert_close(found, case.theirs(*parameters).log_prob(actions), dtype)


@every_case
@every_dtype
def test_entropy_equals_torch_s(case: Case, dtype: torch.dtype) -> None:
    """One entropy per state, in nats."""
    parameters = case.parameters(dtype)
    found = case.ours(*parameters).entropy()
    assert_close(found, case.theirs(*parameters).entropy(), dtype)


@every_case
@every_dtype
def test_mode_equals_torch_s(case: Case, dtype: torch.dtype) -> None:
    parameters = case.parameters(dtype)
    found = case.ours(*parameters).mode()
    assert found.dtype == (dtype if case.below is None else torch.int64)
    assert torch.equal(found, case.theirs(*parameters).mode.to(found.dtype))


@every_case
@every_dtype
def test_gradients_equal_torch_s(case: Case, dtype: torch.dtype) -> None:
    """Gradients of every parameter, with a different weight for each state."""
    parameters, actions = case.parameters(dtype), case.random_actions(dtype)
    states = case.shapes[0][:-1]
    weights = torch.arange(1, 1 + math.prod(states)).view(states)

    def gradients(policy: Any) -> tuple[list[Tensor], list[Tensor]]:
        by_log_prob = torch.autograd.grad(
            (weights * policy.log_prob(actions)).sum(), parameters, retain_graph=True
        )
        by_entropy = torch.autograd.grad(
            (weights * policy.entropy()).sum(), parameters, materialize_grads=True
        )  # a Gaussian's entropy does not depend on its mean
        return by_log_prob, by_entropy

    assert_close(gradients(case.ours(*parameters)), gradients(case.theirs(*parameters)), dtype)


@every_case
@every_dtype
def test_samples_have_the_shape_dtype_and_range_of_actions(case: Case, dtype: torch.dtype) -> None:
    """They require no gradient."""
    sample = case.ours(*case.parameters(dtype)).sample(torch.Generator().manual_seed(0))
    assert sample.shape == case.actions
    assert not sample.requires_grad
    if case.below is None:
        assert sample.dtype == dtype
    else:
        assert sample.dtype == torch.int64
        assert bool(((sample >= 0) & (sample < torch.tensor(case.below))).all())


@every_case
def test_modes_require_no_gradient(case: Case) -> None:
    assert not case.ours(*case.parameters()).mode().requires_grad


@every_case
def test_sampling_is_reproducible(case: Case) -> None:
    """Equal generators give equal samples, and consecutive samples differ."""
    policy = case.ours(*(torch.zeros(shape) for shape in case.shapes))
    first, second = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    samples = [policy.sample(first) for _ in range(30)]
    assert all(torch.equal(sample, policy.sample(second)) for sample in samples)
    assert case.below == 1 or any(not torch.equal(sample, samples[0]) for sample in samples)


@every_case
def test_sampling_with_a_generator_does_not_change_the_global_one(case: Case) -> None:
    before = torch.get_rng_state()
    case.ours(*case.parameters()).sample(torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), before)


@every_case
def test_sampling_without_a_generator_depends_on_the_global_seed(case: Case) -> None:
    policy = case.ours(*case.parameters())
    with torch.random.fork_rng():
        torch.manual_seed(7)
        found = policy.sample()
    assert torch.equal(found, policy.sample(torch.Generator().manual_seed(7)))


@every_case
def test_methods_do_not_change_the_parameters(case: Case) -> None:
    parameters, actions = case.parameters(), case.random_actions()
    before = [each.clone() for each in parameters]
    policy = case.ours(*parameters)
    policy.sample(torch.Generator().manual_seed(0))
    policy.mode()
    policy.log_prob(actions)
    policy.entropy()
    assert all(torch.equal(each, old) for each, old in zip(parameters, before, strict=True))


def test_probabilities_sum_to_one() -> None:
    """Σ_a exp(log π(a)) = 1, also for logits far from 0."""
    logits = categorical((4,), 6).parameters(torch.float64)[0] + 1000
    policy = Categorical(logits)
    total = sum(policy.log_prob(torch.full((4,), action)).exp() for action in range(6))
    torch.testing.assert_close(total, torch.ones(4, dtype=torch.float64))


def test_probabilities_of_a_multi_categorical_sum_to_one() -> None:
    """The sum is over all combinations of three components."""
    logits = multi_categorical((), (3, 3, 2)).parameters(torch.float64)[0] + 1000
    every = torch.cartesian_prod(torch.arange(3), torch.arange(3), torch.arange(2))
    total = MultiCategorical(logits.expand(18, 8), [3, 3, 2]).log_prob(every).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-12)


def test_entropy_equals_hand_computed_values() -> None:
    """The entropy is log A for equal logits, 0 for a certain action."""
    entropies = Categorical(torch.tensor([[2.0, 2, 2, 2], [500.0, 0, 0, 0]])).entropy()
    torch.testing.assert_close(entropies, torch.tensor([math.log(4), 0.0]))
    entropies = MultiCategorical(torch.tensor([[2.0, 2, 0, 0, 0], [500.0, 0, 0, 0, 0]]), [2, 3])
    torch.testing.assert_close(entropies.entropy(), torch.tensor([math.log(6), math.log(3)]))
    assert Bernoulli(torch.zeros(3)).entropy().item() == pytest.approx(3 * math.log(2))


def test_a_multi_categorical_with_one_component_is_a_categorical() -> None:
    """Bit-identical, except that the actions have one more axis."""
    logits = categorical((4,), 6).parameters()[0]
    many, one, actions = MultiCategorical(logits, [6]), Categorical(logits), torch.arange(4)
    assert torch.equal(many.log_prob(actions.unsqueeze(-1)), one.log_prob(actions))
    assert torch.equal(many.entropy(), one.entropy())
    samples = [policy.sample(torch.Generator().manual_seed(2)) for policy in (many, one)]
    assert torch.equal(samples[0].squeeze(-1), samples[1])


@every_dtype
def test_bernoulli_is_finite_for_certain_bits(dtype: torch.dtype) -> None:
    """Logits of ±1000: log-probabilities 0 and −1000, entropy 0, and finite gradients."""
    logits = torch.tensor([[1000.0], [-1000.0]], dtype=dtype, requires_grad=True)
    policy = Bernoulli(logits)
    likely, unlikely = torch.tensor([[1], [0]]), torch.tensor([[0], [1]])
    assert policy.log_prob(likely).tolist() == [0, 0]
    assert policy.log_prob(unlikely).tolist() == [-1000, -1000]
    assert policy.entropy().tolist() == [0, 0]
    assert torch.equal(policy.mode(), likely)
    assert torch.equal(policy.sample(torch.Generator().manual_seed(0)), likely)
    loss = policy.log_prob(unlikely).sum() + policy.entropy().sum()
    assert torch.autograd.grad(loss, logits)[0].tolist() == [[-1], [1]]


def test_bernoulli_is_precise_for_nearly_certain_bits() -> None:
    """With logits of ±30, log-probability and entropy have six correct digits in float32."""
    policy = Bernoulli(torch.tensor([[30.0], [-30.0]]))
    rare = math.exp(-30)
    log_probs = policy.log_prob(torch.tensor([[1], [0]]))
    assert log_probs.tolist() == pytest.approx([-rare, -rare], rel=1e-6, abs=0)
    assert policy.entropy().tolist() == pytest.approx([31 * rare] * 2, rel=1e-6, abs=0)


@every_dtype
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_categorical_frequencies_match_the_probabilities(dtype: torch.dtype, seed: int) -> None:
    """χ² of 40,000 samples is below 27.9, the 99.999 % quantile with four degrees of freedom."""
    logits = torch.tensor([-1.5, 0.0, 2.0, 0.5, 1.0], dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    samples = Categorical(logits.expand(40_000, 5)).sample(generator)
    assert chi_square(samples.bincount(minlength=5), logits.softmax(0)) < 27.9


@every_dtype
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_components_are_sampled_independently(dtype: torch.dtype, seed: int) -> None:
    """Frequencies of the 18 combinations match the products of the probabilities."""
    logits = torch.tensor([-1.0, 0, 1, 0.5, -0.5, 0, 0.3, -0.3], dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    a, b, c = MultiCategorical(logits.expand(40_000, 8), [3, 3, 2]).sample(generator).unbind(-1)
    counts = (6 * a + 2 * b + c).bincount(minlength=18)
    first, second, third = (part.softmax(0) for part in logits.split([3, 3, 2]))
    joint = first[:, None, None] * second[:, None] * third
    assert p_value(counts, joint.flatten()) > 1e-5


@every_dtype
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bits_are_sampled_independently(dtype: torch.dtype, seed: int) -> None:
    """Frequencies of the eight combinations match the products of the probabilities."""
    logits = torch.tensor([-1.0, 0.2, 1.5], dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    samples = Bernoulli(logits.expand(40_000, 3)).sample(generator)
    counts = (samples * torch.tensor([4, 2, 1])).sum(-1).bincount(minlength=8)
    p = logits.sigmoid()
    first, second, third = (torch.stack([1 - each, each]) for each in p)
    joint = first[:, None, None] * second[:, None] * third
    assert p_value(counts, joint.flatten()) > 1e-5


@every_dtype
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("state_dependent", [False, True])
def test_gaussian_samples_are_normal(dtype: torch.dtype, seed: int, state_dependent: bool) -> None:
    """Kolmogorov–Smirnov: √n max |F_n − F| is below 2.47 with probability 99.999 %."""
    n = 40_000
    mean = torch.tensor([-3.0, 0.5], dtype=dtype).expand(n, 2)
    log_std = torch.tensor([1.0, -2.0], dtype=dtype)
    expanded = log_std.expand(n, 2) if state_dependent else log_std
    samples = Gaussian(mean, expanded).sample(torch.Generator().manual_seed(seed))
    standard = ((samples - mean) / log_std.exp()).double()
    expected = torch.special.ndtr(standard.sort(0).values)
    ranks = torch.arange(n, dtype=torch.float64).unsqueeze(-1)
    difference = torch.maximum((ranks + 1) / n - expected, expected - ranks / n)
    assert math.sqrt(n) * difference.max().item() < 2.47
    # Correlations of independent samples are normal with a deviation of 1/√n.
    assert abs(standard.prod(-1).mean().item()) < 4.42 / math.sqrt(n)
    assert abs((standard[1:] * standard[:-1]).mean().item()) < 4.42 / math.sqrt(n)


def test_rows_are_sampled_independently() -> None:
    """Frequencies of pairs match the products of the probabilities: χ² with 15 degrees."""
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5])
    generator = torch.Generator().manual_seed(3)
    samples = Categorical(logits.expand(20_000, 2, 4)).sample(generator)
    pairs = (samples[:, 0] * 4 + samples[:, 1]).bincount(minlength=16)
    probabilities = logits.softmax(0)
    assert chi_square(pairs, torch.outer(probabilities, probabilities).flatten()) < 50.5


def test_each_row_is_sampled_with_its_own_logits() -> None:
    """All rows have certain but different actions."""
    certain = torch.tensor([[2, 1], [0, 0], [1, 1], [2, 0]])
    first = 200 * torch.nn.functional.one_hot(certain[:, 0], 3).float()
    second = 200 * torch.nn.functional.one_hot(certain[:, 1], 2).float()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        assert torch.equal(Categorical(first).sample(generator), certain[:, 0])
        both = MultiCategorical(torch.cat([first, second], -1), [3, 2])
        assert torch.equal(both.sample(generator), certain)


def test_each_row_is_sampled_with_its_own_mean_and_deviation() -> None:
    """Rows with a tiny deviation give their means; a row with a large deviation does not."""
    mean = torch.tensor([[1.0, -2.0], [30.0, 4.0], [0.0, 0.0]])
    log_std = torch.tensor([[-30.0, -30], [-30, -30], [3, 3]])
    sample = Gaussian(mean, log_std).sample(torch.Generator().manual_seed(0))
    assert torch.equal(sample[:2], mean[:2])
    assert sample[2].abs().min().item() > 0.01
