"""Action distributions with one env_codec (sample, log_prob, entropy, mode), and their heads."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from gymnasium import Space, spaces
from torch import Tensor, nn
from torch.nn import functional

from hogwild_rl.envs import codecs
from hogwild_rl.errors import UserError
from hogwild_rl.models import layers

_LOG_2_PI = math.log(2 * math.pi)


class ActionDistribution(Protocol):
    """What any policy gives for states [...]: actions of shape A each."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Actions drawn from π, [..., *A], without gradient."""

    def mode(self) -> Tensor:
        """The likeliest actions, [..., *A], without gradient."""


class StochasticDistribution(ActionDistribution, Protocol):
    """What a stochastic policy gives: actions whose probabilities are known."""

    def log_prob(self, actions: Tensor) -> Tensor:
        """The log-probability or log-density of actions [..., *A], [...]."""

    def entropy(self) -> Tensor:
        """−E[log π] in nats, [...]."""


class Categorical:
    """A choice among A actions.

        π(a) = exp(logits_a) / Σ_b exp(logits_b)

    Normalised log-probabilities are computed once, when first needed, and carry a gradient if they
    were computed with one.

    Args:
        logits: unnormalised log-probabilities, [..., A].
    """

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Actions drawn from π, [...] int64.

        argmax_a (logits_a − log e_a) with e_a ~ Exp(1) is a draw from π (the Gumbel-max trick), and
        needs no normalisation: 9 µs for 64 rows where torch.multinomial takes 20.
        """
        noise = torch.empty_like(self._logits).exponential_(generator=generator).log_()
        return (self._logits - noise).argmax(-1)

    def mode(self) -> Tensor:
        """The likeliest action, [...] int64."""
        return self._logits.argmax(-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """The log-probability log π(a), [...], of actions [...] int64."""
        return self._log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """−Σ π log π in nats, [...]."""
        return -(self._log_probs.exp() * self._log_probs).sum(-1)

    @functools.cached_property
    def _log_probs(self) -> Tensor:
        return self._logits.log_softmax(-1)


class MultiCategorical:
    """Independent choices, the i-th among sizes[i] actions.

        π(a) = Π_i exp(logits_i,a_i) / Σ_b exp(logits_i,b)

    Neighbouring choices of one size are computed together.

    Args:
        logits: unnormalised log-probabilities, choice after choice, [..., Σ sizes].
        sizes: numbers of actions, N of them.
    """

    def __init__(self, logits: Tensor, sizes: Sequence[int]) -> None:
        self._logits = logits
        self._runs = [(len(list(run)), size) for size, run in itertools.groupby(sizes)]
        self._counts = [count for count, _ in self._runs]
        self._lengths = [count * size for count, size in self._runs]

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Actions drawn from π, [..., N] int64; as in Categorical."""
        noise = torch.empty_like(self._logits).exponential_(generator=generator).log_()
        return self._argmax(self._logits - noise)

    def mode(self) -> Tensor:
        """The likeliest action of each choice, [..., N] int64."""
        return self._argmax(self._logits)

    def log_prob(self, actions: Tensor) -> Tensor:
        """The log-probability Σ_i log π_i(a_i), [...], of actions [..., N] int64."""
        pairs = zip(self._log_probs, actions.split_with_sizes(self._counts, -1), strict=True)
        taken = [each.gather(-1, chosen.unsqueeze(-1)).squeeze(-1) for each, chosen in pairs]
        return torch.cat(taken, -1).sum(-1)

    def entropy(self) -> Tensor:
        """The sum of the choices' entropies in nats, [...]."""
        log_probs = torch.cat([each.flatten(-2) for each in self._log_probs], -1)
        return -(log_probs.exp() * log_probs).sum(-1)

    @functools.cached_property
    def _log_probs(self) -> list[Tensor]:
        return [each.log_softmax(-1) for each in self._split(self._logits)]

    def _argmax(self, scores: Tensor) -> Tensor:
        return torch.cat([each.argmax(-1) for each in self._split(scores)], -1)

    def _split(self, scores: Tensor) -> list[Tensor]:
        """[..., Σ sizes] as [..., count, size] for each run of equal sizes."""
        parts = zip(scores.split_with_sizes(self._lengths, -1), self._runs, strict=True)
        return [part.view(*part.shape[:-1], *run) for part, run in parts]


class Bernoulli:
    """Independent bits.

        π(a) = Π_i σ(logits_i)^a_i σ(−logits_i)^(1 − a_i)

    Args:
        logits: log-odds of 1, [..., N].
    """

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Actions drawn from π, [..., N] int64 of 0 and 1.

        torch.bernoulli takes 4 µs for this one's 6, but ends a CUDA process at the first NaN.
        """
        uniform = torch.empty_like(self._logits).uniform_(generator=generator)
        return (uniform < self._logits.sigmoid()).long()

    def mode(self) -> Tensor:
        """The likeliest bits, [..., N] int64."""
        return (self._logits > 0).long()

    def log_prob(self, actions: Tensor) -> Tensor:
        """The log-probability Σ_i log σ(±logits_i), [...], of actions [..., N] int64."""
        return functional.logsigmoid((2 * actions - 1) * self._logits).sum(-1)

    def entropy(self) -> Tensor:
        """The sum of the bits' entropies in nats, [...].

        H_i = −log σ(x) + x σ(−x) with x = |logits_i|: no difference of large numbers.
        """
        odds = self._logits.abs()
        return (odds * (-odds).sigmoid() - functional.logsigmoid(odds)).sum(-1)


class Gaussian:
    """A normal distribution without correlations.

        log π(a) = −Σ_i [(a_i − μ_i)² / 2σ_i² + log σ_i] − N/2 log 2π

    Args:
        mean: μ, [..., N].
        log_std: log σ, [..., N], or [N] for one that does not depend on the state.
    """

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self._mean = mean
        self._log_std = log_std

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Actions drawn from π, [..., N], of the mean's dtype.

        Detached, because log π(a) would lose its gradient by μ if a carried one.
        """
        noise = torch.empty_like(self._mean).normal_(generator=generator)
        return torch.addcmul(self._mean, self._log_std.exp(), noise).detach()

    def mode(self) -> Tensor:
        """The mean, [..., N]."""
        return self._mean.detach()

    def log_prob(self, actions: Tensor) -> Tensor:
        """The log-density log π(a), [...], of actions [..., N]."""
        standard = (actions - self._mean) * (-self._log_std).exp()
        constant = 0.5 * _LOG_2_PI * self._mean.shape[-1]
        return -(0.5 * standard.square() + self._log_std).sum(-1) - constant

    def entropy(self) -> Tensor:
        """Σ_i log σ_i + N/2 (1 + log 2π) in nats, [...]."""
        constant = 0.5 * (1 + _LOG_2_PI) * self._mean.shape[-1]
        return (self._log_std.sum(-1) + constant).expand(self._mean.shape[:-1])


class Deterministic:
    """One action, taken for certain.

    Args:
        actions: [..., *A].
    """

    def __init__(self, actions: Tensor) -> None:
        self._actions = actions

    def sample(self, generator: torch.Generator | None = None) -> Tensor:  # noqa: ARG002
        """That action, [..., *A]."""
        return self._actions.detach()

    def mode(self) -> Tensor:
        """That action, [..., *A]."""
        return self._actions.detach()


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
    shape = codecs.ActionCodec.of(action_space).shape  # refuses other spaces
    size = math.prod(shape)
    if isinstance(action_space, spaces.Discrete):
        return _Logits(features, int(action_space.n), Categorical, generator)
    if isinstance(action_space, spaces.MultiDiscrete):
        sizes = tuple(int(n) for n in action_space.nvec.flat)
        choices = functools.partial(MultiCategorical, sizes=sizes)
        return _Logits(features, sum(sizes), choices, generator)
    if isinstance(action_space, spaces.MultiBinary):
        return _Logits(features, size, Bernoulli, generator)
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
        distribution: Callable[[Tensor], StochasticDistribution],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self._distribution = distribution
        self.logits = layers.linear(features, outputs, _GAIN, generator)

    def forward(self, features: Tensor) -> StochasticDistribution:
        return self._distribution(self.logits(features))


class _Gaussian(nn.Module):
    """A linear mean, and one log σ for all states."""

    def __init__(
        self, features: int, size: int, log_std_init: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.mean = layers.linear(features, size, _GAIN, generator)
        self.log_std = nn.Parameter(torch.full((size,), log_std_init))

    def forward(self, features: Tensor) -> StochasticDistribution:
        return Gaussian(self.mean(features), self.log_std)


class _StateDependentGaussian(nn.Module):
    """A linear mean and a linear log σ."""

    def __init__(
        self, features: int, size: int, log_std_init: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.mean = layers.linear(features, size, _GAIN, generator)
        self.log_std = layers.linear(features, size, _GAIN, generator)
        nn.init.constant_(self.log_std.bias, log_std_init)

    def forward(self, features: Tensor) -> StochasticDistribution:
        log_std = self.log_std(features).clamp(LOG_STD_MIN, LOG_STD_MAX)
        return Gaussian(self.mean(features), log_std)
