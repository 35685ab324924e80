"""Distributions over actions against torch.distributions, and samples against probabilities."""

import math

import pytest
import torch
from torch import Tensor

from hogwild_rl.models.distributions import Categorical

SHAPES = [(6,), (4, 6), (3, 4, 6), (5, 1)]
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}
every_case = pytest.mark.parametrize(
    ("shape", "dtype"), [(shape, dtype) for shape in SHAPES for dtype in TOLERANCES]
)


def random_logits(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Logits of some spread, far from normalised."""
    generator = torch.Generator().manual_seed(0)
    return 7 + 3 * torch.randn(shape, generator=generator, dtype=dtype)


def random_actions(logits: Tensor) -> Tensor:
    """Any actions at all, likely or not."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(logits.shape[-1], logits.shape[:-1], generator=generator)


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    """Σ (observed − expected)² / expected."""
    expected = counts.sum() * probabilities
    return float(((counts - expected).square() / expected).sum())


@every_case
def test_log_prob_is_torchs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """The log-probability of every action, with the shape of the actions."""
    logits = random_logits(shape, dtype)
    actions = random_actions(logits)
    found = Categorical(logits).log_prob(actions)
    expected = torch.distributions.Categorical(logits=logits).log_prob(actions)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCES[dtype])


@every_case
def test_entropy_is_torchs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """The entropy in nats, one axis less than the logits."""
    logits = random_logits(shape, dtype)
    found = Categorical(logits).entropy()
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCES[dtype])


@every_case
def test_mode_is_torchs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """The likeliest action."""
    logits = random_logits(shape, dtype)
    expected = torch.distributions.Categorical(logits=logits).mode
    assert torch.equal(Categorical(logits).mode(), expected)


@every_case
def test_samples_are_actions(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Samples are int64, one axis less than the logits, and below A."""
    logits = random_logits(shape, dtype)
    sample = Categorical(logits).sample(torch.Generator().manual_seed(0))
    assert (sample.dtype, sample.shape) == (torch.int64, logits.shape[:-1])
    assert bool(((sample >= 0) & (sample < shape[-1])).all())


def test_log_probs_add_up_to_one() -> None:
    """Σ_a exp(log π(a)) = 1, also for logits far from 0."""
    logits = random_logits((4, 6), torch.float64) + 1000
    policy = Categorical(logits)
    total = sum(policy.log_prob(torch.full((4,), action)).exp() for action in range(6))
    torch.testing.assert_close(total, torch.ones(4, dtype=torch.float64))


def test_entropy_by_hand() -> None:
    """Log A where all are equal, 0 where one has all."""
    entropies = Categorical(torch.tensor([[2.0, 2, 2, 2], [500.0, 0, 0, 0]])).entropy()
    torch.testing.assert_close(entropies, torch.tensor([math.log(4), 0.0]))


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_gradients_are_torchs(dtype: torch.dtype) -> None:
    """The derivatives of log-probability and entropy by the logits."""
    logits = random_logits((3, 6), dtype).requires_grad_()
    actions = random_actions(logits)
    ours, theirs = Categorical(logits), torch.distributions.Categorical(logits=logits)
    found = torch.autograd.grad((ours.log_prob(actions) + 2 * ours.entropy()).sum(), logits)
    expected = torch.autograd.grad((theirs.log_prob(actions) + 2 * theirs.entropy()).sum(), logits)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_frequencies_are_the_probabilities(dtype: torch.dtype, seed: int) -> None:
    """χ² of 40,000 draws stays below 27.9, its 99.999 % quantile for four degrees of freedom."""
    logits = torch.tensor([-1.5, 0.0, 2.0, 0.5, 1.0], dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    samples = Categorical(logits.expand(40_000, 5)).sample(generator)
    assert chi_square(samples.bincount(minlength=5), logits.softmax(0)) < 27.9


def test_rows_are_drawn_independently() -> None:
    """Pairs of neighbouring rows fall on the product of the probabilities: χ² of 15 degrees."""
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5])
    generator = torch.Generator().manual_seed(3)
    samples = Categorical(logits.expand(20_000, 2, 4)).sample(generator)
    pairs = (samples[:, 0] * 4 + samples[:, 1]).bincount(minlength=16)
    probabilities = logits.softmax(0)
    assert chi_square(pairs, torch.outer(probabilities, probabilities).flatten()) < 50.5


def test_each_row_follows_its_own_logits() -> None:
    """A row with one certain action always gives it, whatever the other rows hold."""
    certain = torch.tensor([2, 0, 1, 2])
    logits = 200 * torch.nn.functional.one_hot(certain, 3).float()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        assert torch.equal(Categorical(logits).sample(generator), certain)


def test_sampling_is_reproducible() -> None:
    """Equal generators give equal samples, and draw after draw differs."""
    policy = Categorical(torch.zeros(50, 4))
    first, second = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    draws = [policy.sample(first) for _ in range(3)]
    assert all(torch.equal(draw, policy.sample(second)) for draw in draws)
    assert not torch.equal(draws[0], draws[1])


def test_sampling_with_a_generator_leaves_the_global_stream_untouched() -> None:
    """Who else draws from torch's global stream is not disturbed."""
    before = torch.get_rng_state()
    Categorical(torch.zeros(50, 4)).sample(torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), before)


def test_sampling_leaves_the_logits_untouched() -> None:
    """The distribution is the same after a draw."""
    logits = random_logits((4, 6), torch.float32)
    before = logits.clone()
    Categorical(logits).sample(torch.Generator().manual_seed(0))
    assert torch.equal(logits, before)
