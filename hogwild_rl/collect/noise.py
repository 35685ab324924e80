"""Noise on the actions of a deterministic policy, so that it finds out what others are worth."""

import math
from typing import Protocol

import torch
from torch import Tensor


class Noise(Protocol):
    """What is added to the actions of B environments, in units of half an action's range.

    Attributes:
        shape: (B, A).
    """

    shape: tuple[int, int]

    def sample(self) -> Tensor:
        """For the next step, [B, A]."""

    def reset(self, ended: Tensor) -> None:
        """Starts anew where episodes ended, [B] bool."""


class Gaussian:
    """Independent draws from N(0, σ²).

    Args:
        B, A: environments, and numbers in an action.
        std: σ ≥ 0.
        generator: what is drawn from.

    Source: Fujimoto et al. 2018 (arXiv:1802.09477), section 6.1.
    """

    def __init__(self, B: int, A: int, std: float, generator: torch.Generator) -> None:
        self.shape, self._std, self._generator = (B, A), std, generator

    def sample(self) -> Tensor:
        """[B, A]."""
        return torch.randn(self.shape, generator=self._generator).mul_(self._std)

    def reset(self, ended: Tensor) -> None:
        """There is nothing to forget."""


class OrnsteinUhlenbeck:
    """A random walk that is pulled back to 0: pushes that last.

        x ← x − θ x Δt + σ √Δt ε        ε ~ N(0, 1)

    Args:
        B, A: environments, and numbers in an action.
        std: σ ≥ 0; in the long run the deviation is σ / √(2θ).
        theta: θ > 0.
        dt: Δt > 0; a push lasts for about 1 / (θ Δt) steps.
        generator: what is drawn from.

    Source: Uhlenbeck and Ornstein 1930; in DDPG: Lillicrap et al. 2016 (arXiv:1509.02971),
    section 7.
    """

    def __init__(
        self, B: int, A: int, std: float, theta: float, dt: float, generator: torch.Generator
    ) -> None:
        self.shape, self._generator = (B, A), generator
        self._x = torch.zeros(self.shape)
        self._pull, self._push = theta * dt, std * math.sqrt(dt)

    def sample(self) -> Tensor:
        """[B, A]."""
        drawn = torch.randn(self.shape, generator=self._generator)
        self._x.mul_(1 - self._pull).add_(drawn, alpha=self._push)
        return self._x.clone()

    def reset(self, ended: Tensor) -> None:
        """Back to 0 where an episode ended."""
        self._x[ended] = 0
