"""Last layers of a policy: features in, a distribution over actions out."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from gymnasium import Space, spaces
from torch import Tensor, nn

from hogwild_rl import UserError
from hogwild_rl.envs import actions
from hogwild_rl.models import distributions, networks

# A linear function of features has no bounds of its own: far from what was seen σ would be 0 or ∞.
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0  # the code of Haarnoja et al. 2018 (arXiv:1801.01290)

_GAIN = 0.01  # the first policy is close to uniform, or its mean close to 0


def head(
    action_space: Space[Any],
    features: int,
    generator: torch.Generator,
    *,
    state_dependent_std: bool = False,
    log_std_init: float = 0.0,
) -> nn.Module:
    """The module that turns features [..., F] into a distribution over actions for each [...].

    Discrete gives a Categorical, MultiDiscrete a MultiCategorical, MultiBinary a Bernoulli and a
    Box a Gaussian. Their actions are what `envs.actions.ActionCodec` takes: choices counted from 0,
    and the space flattened to one axis of N where an action is more than a single choice.

    Args:
        action_space: Discrete, MultiDiscrete, MultiBinary or a Box of floats.
        features: F.
        generator: source of the initial weights.
        state_dependent_std: log σ of a Gaussian is a linear function of the features, kept within
            LOG_STD_MIN..LOG_STD_MAX; otherwise it is a parameter of its own, without bounds.
        log_std_init: log σ at the start.

    Raises:
        UserError: the space is not supported, or log_std_init is not within that range.
    """
    shape = actions.ActionCodec.of(action_space).shape  # refuses other spaces
    size = math.prod(shape)
    if isinstance(action_space, spaces.Discrete):
        return _Logits(features, int(action_space.n), distributions.Categorical, generator)
    if isinstance(action_space, spaces.MultiDiscrete):
        sizes = tuple(int(n) for n in action_space.nvec.flat)
        choices = functools.partial(distributions.MultiCategorical, sizes=sizes)
        return _Logits(features, sum(sizes), choices, generator)
    if isinstance(action_space, spaces.MultiBinary):
        return _Logits(features, size, distributions.Bernoulli, generator)
    if not state_dependent_std:
        return _Gaussian(features, size, log_std_init, generator)
    if not LOG_STD_MIN < log_std_init < LOG_STD_MAX:
        raise UserError(
            f"log_std_init must lie between {LOG_STD_MIN:g} and {LOG_STD_MAX:g}, got {log_std_init}"
        )
    return _StateDependentGaussian(features, size, log_std_init, generator)


class _Logits(nn.Module):
    """One linear layer, whose outputs are the logits of a distribution."""

    def __init__(
        self,
        features: int,
        outputs: int,
        distribution: Callable[[Tensor], distributions.Distribution],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self._distribution = distribution
        self.logits = networks.linear(features, outputs, _GAIN, generator)

    def forward(self, features: Tensor) -> distributions.Distribution:
        return self._distribution(self.logits(features))


class _Gaussian(nn.Module):
    """A linear mean, and one log σ for all states."""

    def __init__(
        self, features: int, size: int, log_std_init: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.mean = networks.linear(features, size, _GAIN, generator)
        self.log_std = nn.Parameter(torch.full((size,), log_std_init))

    def forward(self, features: Tensor) -> distributions.Distribution:
        return distributions.Gaussian(self.mean(features), self.log_std)


class _StateDependentGaussian(nn.Module):
    """A linear mean and a linear log σ."""

    def __init__(
        self, features: int, size: int, log_std_init: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.mean = networks.linear(features, size, _GAIN, generator)
        self.log_std = networks.linear(features, size, _GAIN, generator)
        nn.init.constant_(self.log_std.bias, log_std_init)

    def forward(self, features: Tensor) -> distributions.Distribution:
        log_std = self.log_std(features).clamp(LOG_STD_MIN, LOG_STD_MAX)
        return distributions.Gaussian(self.mean(features), log_std)
