"""Exploration noise for deterministic policies, in units of half an action's range."""

import math
from typing import TypeAlias

import torch
from torch import Tensor


class Gaussian:
    """Gaussian noise: independent samples from N(0, σ²).

    Args:
        B, A: number of environments, and of action dimensions.
        std: σ ≥ 0.
        generator: source of random numbers.

    Source: Fujimoto et al. 2018 (arXiv:1802.09477), section 6.1.
    """

    def __init__(self, B: int, A: int, std: float, generator: torch.Generator) -> None:
        self.shape, self._std, self._generator = (B, A), std, generator

    def sample(self) -> Tensor:
        """Samples the noise, [B, A]."""
        return torch.randn(self.shape, generator=self._generator).mul_(self._std)

    def reset(self, ended: Tensor) -> None:
        """Does nothing: the noise has no state."""


class OrnsteinUhlenbeck:
    """Ornstein-Uhlenbeck process: temporally correlated noise with mean 0.

        x ← x − θ x Δt + σ √Δt ε        ε ~ N(0, 1)

    Args:
        B, A: number of environments, and of action dimensions.
        std: σ ≥ 0; the stationary standard deviation is σ / √(2θ).
        theta: rate of mean reversion θ > 0.
        dt: time step Δt > 0; the correlation time is about 1 / (θ Δt) steps.
        generator: source of random numbers.

    Source: Uhlenbeck and Ornstein 1930; in DDPG: Lillicrap et al. 2016 (arXiv:1509.02971),
    section 7.
    """

    def __init__(
        self, B: int, A: int, std: float, theta: float, dt: float, generator: torch.Generator
    ) -> None:
        self.shape, self._generator = (B, A), generator
        self._x = torch.zeros(self.shape)
        self._decay, self._scale = theta * dt, std * math.sqrt(dt)

    def sample(self) -> Tensor:
        """Samples the noise, [B, A]."""
        noise = torch.randn(self.shape, generator=self._generator)
        self._x.mul_(1 - self._decay).add_(noise, alpha=self._scale)
        return self._x.clone()

    def reset(self, ended: Tensor) -> None:
        """Sets the process to 0 where an episode ended."""
        self._x[ended] = 0


Noise: TypeAlias = Gaussian | OrnsteinUhlenbeck
"""Noise added to the actions of B environments; `shape` is (B, A)."""
