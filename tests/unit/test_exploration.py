"""Tests of exploration noise against its distribution and recursion."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hogwild_rl.collect.noise import Gaussian, Noise, OrnsteinUhlenbeck

NOISES: dict[str, Callable[..., Noise]] = {
    "gaussian": lambda B, A, s, std=0.3: Gaussian(B, A, std, s),
    "ou": lambda B, A, s, std=0.3: OrnsteinUhlenbeck(B, A, std, 0.15, 0.01, s),
}
every_noise = pytest.mark.parametrize("make", NOISES.values(), ids=NOISES.keys())


def generator(seed: int = 0) -> torch.Generator:
    """Seeded random generator."""
    return torch.Generator().manual_seed(seed)


def samples(noise: Noise, count: int) -> Tensor:
    """Successive samples, [count, B, A]."""
    return torch.stack([noise.sample() for _ in range(count)])


@every_noise
def test_sample_has_one_number_per_action(make: Callable[..., Noise]) -> None:
    noise = make(3, 2, generator())
    assert noise.shape == noise.sample().shape == (3, 2)
    assert noise.sample().dtype == torch.float32


@every_noise
def test_samples_do_not_share_memory(make: Callable[..., Noise]) -> None:
    """The caller may modify a sample."""
    noise, unmodified = make(3, 2, generator()), make(3, 2, generator())
    first = noise.sample()
    before = first.clone()
    noise.sample()
    noise.reset(torch.tensor([True, False, True]))
    assert torch.equal(first, before)
    sampled = samples(unmodified, 2)
    unmodified.reset(torch.tensor([True, False, True]))
    assert torch.equal(sampled[0], before)
    noise.sample().fill_(1e9)
    unmodified.sample()
    assert torch.equal(noise.sample(), unmodified.sample())


@every_noise
def test_samples_depend_only_on_the_generator(make: Callable[..., Noise]) -> None:
    first, again, other = (samples(make(3, 2, generator(seed)), 4) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.rand(9)  # torch's global generator has no influence
    assert torch.equal(samples(make(3, 2, generator(1)), 4), first)


@every_noise
def test_zero_standard_deviation_gives_zero_noise(make: Callable[..., Noise]) -> None:
    assert not samples(make(3, 2, generator(), std=0.0), 5).any()


def test_gaussian_noise_is_normal_and_independent() -> None:
    """N(0, 0.3²), without correlation between dimensions or successive samples."""
    count, std = 20_000, 0.3
    noise = Gaussian(2, 3, std, generator())
    found = samples(noise, count).flatten(1)
    error = std / math.sqrt(count)
    assert found.mean(0).abs().max() < 4 * error
    assert (found.std(0) - std).abs().max() < 4 * error
    within = (found.abs() < std).float().mean(0)
    assert (within - math.erf(math.sqrt(0.5))).abs().max() < 2 / math.sqrt(count)
    between = torch.corrcoef(found.T) - torch.eye(6)
    successive = torch.corrcoef(torch.cat([found[1:], found[:-1]], dim=1).T)[:6, 6:]
    assert max(between.abs().max(), successive.abs().max()) < 4.5 / math.sqrt(count)


def test_gaussian_noise_reset_has_no_effect() -> None:
    ours, theirs = (Gaussian(2, 3, 0.3, generator()) for _ in range(2))
    ours.sample(), theirs.sample()
    ours.reset(torch.ones(2, dtype=torch.bool))
    assert torch.equal(ours.sample(), theirs.sample())


# Ornstein-Uhlenbeck.


@pytest.mark.parametrize(
    ("std", "theta", "dt"), [(0.2, 0.15, 0.01), (0.5, 3.0, 0.1), (2.0, 1.0, 1.0)]
)
def test_ou_noise_follows_its_recursion(std: float, theta: float, dt: float) -> None:
    """The recursion x ← x − θ x Δt + σ √Δt ε starts at x = 0 and after every reset."""
    noise, epsilon_generator = OrnsteinUhlenbeck(3, 2, std, theta, dt, generator(5)), generator(5)
    x = torch.zeros(3, 2, dtype=torch.float64)
    for step in range(200):
        epsilon = torch.randn(3, 2, generator=epsilon_generator).double()
        x = x - theta * x * dt + std * math.sqrt(dt) * epsilon
        torch.testing.assert_close(noise.sample().double(), x, rtol=1e-5, atol=1e-6)
        if step % 50 == 20:
            ended = torch.tensor([False, True, step > 100])
            noise.reset(ended)
            x[ended] = 0


def test_ou_noise_has_its_stationary_deviation_and_autocorrelation() -> None:
    """The deviation is σ / √(2θ), the autocorrelation e^−1 after 1 / (θ Δt) = 50 steps."""
    std, theta, dt, lag = 0.4, 2.0, 0.01, 50
    noise = OrnsteinUhlenbeck(4_000, 2, std, theta, dt, generator())
    found = samples(noise, 10 * lag)
    early, late = found[-1 - lag].flatten(), found[-1].flatten()
    expected = std / math.sqrt(2 * theta)
    for x in (early, late):
        assert x.std().item() == pytest.approx(expected, rel=0.03)
        assert abs(x.mean().item()) < 4 * expected / math.sqrt(len(x))
    correlation = torch.corrcoef(torch.stack([early, late]))[0, 1].item()
    assert correlation == pytest.approx(math.exp(-1), abs=0.04)
    between = torch.corrcoef(found[-1].T)[0, 1].item()
    assert abs(between) < 4 / math.sqrt(4_000)


def test_ou_noise_grows_from_zero_like_a_random_walk() -> None:
    """The deviation after n steps is σ √(n Δt) if θ is small."""
    std, dt = 0.4, 0.01
    found = samples(OrnsteinUhlenbeck(4_000, 2, std, 1e-3, dt, generator()), 16)
    for n in (1, 4, 16):
        expected = std * math.sqrt(n * dt)
        assert found[n - 1].std().item() == pytest.approx(expected, rel=0.04)


def test_ou_noise_is_reset_only_where_an_episode_ended() -> None:
    """The next sample starts from 0 there; the others are unchanged."""
    ours, theirs = (OrnsteinUhlenbeck(3, 2, 1.0, 0.01, 1.0, generator()) for _ in range(2))
    for noise in (ours, theirs):
        samples(noise, 30)
    ended = torch.tensor([False, True, False])
    last = theirs.sample()
    ours.sample()
    ours.reset(~torch.ones(3, dtype=torch.bool))  # no episode ended
    ours.reset(ended)
    now, without_reset = ours.sample(), theirs.sample()
    assert torch.equal(now[~ended], without_reset[~ended])
    torch.testing.assert_close(now[ended], without_reset[ended] - 0.99 * last[ended])
    assert last[ended].abs().max() > 1
