"""Noise against the distributions and the recursion that it is said to have."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hogwild_rl.collect.noise import Gaussian, Noise, OrnsteinUhlenbeck

KINDS: dict[str, Callable[..., Noise]] = {
    "gaussian": lambda B, A, s, std=0.3: Gaussian(B, A, std, s),
    "ou": lambda B, A, s, std=0.3: OrnsteinUhlenbeck(B, A, std, 0.15, 0.01, s),
}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())


def stream(seed: int = 0) -> torch.Generator:
    """A random stream of its own."""
    return torch.Generator().manual_seed(seed)


def draws(noise: Noise, count: int) -> Tensor:
    """Some in a row, [count, B, A]."""
    return torch.stack([noise.sample() for _ in range(count)])


@every_kind
def test_a_draw_is_a_number_for_each_action(make: Callable[..., Noise]) -> None:
    noise = make(3, 2, stream())
    assert noise.shape == noise.sample().shape == (3, 2)
    assert noise.sample().dtype == torch.float32


@every_kind
def test_a_draw_is_not_changed_by_later_ones(make: Callable[..., Noise]) -> None:
    """It belongs to the caller, who may also write on it."""
    noise, undisturbed = make(3, 2, stream()), make(3, 2, stream())
    first = noise.sample()
    before = first.clone()
    noise.sample()
    noise.reset(torch.tensor([True, False, True]))
    assert torch.equal(first, before)
    drawn = draws(undisturbed, 2)
    undisturbed.reset(torch.tensor([True, False, True]))
    assert torch.equal(drawn[0], before)
    noise.sample().fill_(1e9)
    undisturbed.sample()
    assert torch.equal(noise.sample(), undisturbed.sample())


@every_kind
def test_draws_are_those_of_the_stream(make: Callable[..., Noise]) -> None:
    first, again, other = (draws(make(3, 2, stream(seed)), 4) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.rand(9)  # torch's own stream has no part in it
    assert torch.equal(draws(make(3, 2, stream(1)), 4), first)


@every_kind
def test_no_deviation_is_no_noise(make: Callable[..., Noise]) -> None:
    assert not draws(make(3, 2, stream(), std=0.0), 5).any()


def test_gaussian_noise_is_normal_and_independent() -> None:
    """N(0, 0.3²) in every number, whatever was drawn before and beside it."""
    count, std = 20_000, 0.3
    noise = Gaussian(2, 3, std, stream())
    found = draws(noise, count).flatten(1)
    error = std / math.sqrt(count)
    assert found.mean(0).abs().max() < 4 * error
    assert (found.std(0) - std).abs().max() < 4 * error
    within = (found.abs() < std).float().mean(0)
    assert (within - math.erf(math.sqrt(0.5))).abs().max() < 2 / math.sqrt(count)
    beside = torch.corrcoef(found.T) - torch.eye(6)
    before = torch.corrcoef(torch.cat([found[1:], found[:-1]], dim=1).T)[:6, 6:]
    assert max(beside.abs().max(), before.abs().max()) < 4.5 / math.sqrt(count)


def test_gaussian_noise_has_nothing_to_forget() -> None:
    ours, theirs = (Gaussian(2, 3, 0.3, stream()) for _ in range(2))
    ours.sample(), theirs.sample()
    ours.reset(torch.ones(2, dtype=torch.bool))
    assert torch.equal(ours.sample(), theirs.sample())


# Ornstein-Uhlenbeck.


@pytest.mark.parametrize(
    ("std", "theta", "dt"), [(0.2, 0.15, 0.01), (0.5, 3.0, 0.1), (2.0, 1.0, 1.0)]
)
def test_it_walks_by_its_recursion(std: float, theta: float, dt: float) -> None:
    """The rule x ← x − θ x Δt + σ √Δt ε from x = 0, and from 0 again where it forgets."""
    noise, epsilons = OrnsteinUhlenbeck(3, 2, std, theta, dt, stream(5)), stream(5)
    x = torch.zeros(3, 2, dtype=torch.float64)
    for step in range(200):
        epsilon = torch.randn(3, 2, generator=epsilons).double()
        x = x - theta * x * dt + std * math.sqrt(dt) * epsilon
        torch.testing.assert_close(noise.sample().double(), x, rtol=1e-5, atol=1e-6)
        if step % 50 == 20:
            ended = torch.tensor([False, True, step > 100])
            noise.reset(ended)
            x[ended] = 0


def test_in_the_long_run_its_deviation_and_its_memory_are_as_stated() -> None:
    """σ / √(2θ), and e^−1 of a push is left after 1 / (θ Δt) = 50 steps."""
    std, theta, dt, lag = 0.4, 2.0, 0.01, 50
    noise = OrnsteinUhlenbeck(4_000, 2, std, theta, dt, stream())
    found = draws(noise, 10 * lag)
    early, late = found[-1 - lag].flatten(), found[-1].flatten()
    expected = std / math.sqrt(2 * theta)
    for x in (early, late):
        assert x.std().item() == pytest.approx(expected, rel=0.03)
        assert abs(x.mean().item()) < 4 * expected / math.sqrt(len(x))
    correlation = torch.corrcoef(torch.stack([early, late]))[0, 1].item()
    assert correlation == pytest.approx(math.exp(-1), abs=0.04)
    beside = torch.corrcoef(found[-1].T)[0, 1].item()
    assert abs(beside) < 4 / math.sqrt(4_000)


def test_it_grows_from_0_like_a_walk() -> None:
    """The first push has the deviation σ √Δt, n of them √n times that while nothing pulls."""
    std, dt = 0.4, 0.01
    found = draws(OrnsteinUhlenbeck(4_000, 2, std, 1e-3, dt, stream()), 16)
    for n in (1, 4, 16):
        expected = std * math.sqrt(n * dt)
        assert found[n - 1].std().item() == pytest.approx(expected, rel=0.04)


def test_it_forgets_only_where_an_episode_ended() -> None:
    """There the next draw is a first one; elsewhere it is as if nothing had happened."""
    ours, theirs = (OrnsteinUhlenbeck(3, 2, 1.0, 0.01, 1.0, stream()) for _ in range(2))
    for noise in (ours, theirs):
        draws(noise, 30)
    ended = torch.tensor([False, True, False])
    last = theirs.sample()
    ours.sample()
    ours.reset(~torch.ones(3, dtype=torch.bool))  # nowhere
    ours.reset(ended)
    now, as_before = ours.sample(), theirs.sample()
    assert torch.equal(now[~ended], as_before[~ended])
    torch.testing.assert_close(now[ended], as_before[ended] - 0.99 * last[ended])
    assert last[ended].abs().max() > 1
