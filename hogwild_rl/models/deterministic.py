"""A policy that names one action, and what actions are worth; each followed by a slow copy."""

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor, nn

from hogwild_rl.envs.codecs import ActionCodec, ObservationCodec, one_line
from hogwild_rl.errors import UserError
from hogwild_rl.models import distributions, encoders, layers
from hogwild_rl.models.actor_critic import Architecture

M = TypeVar("M", bound=nn.Module)

_IN_PLACE = {"relu": torch.relu_, "tanh": torch.tanh_}
_LAST = 3e-3  # bound of a last layer's weights: Lillicrap et al. 2016, section 7


class DeterministicActorCritic(nn.Module):
    """A policy μ(s) in −1..1 and N estimates Q_i(s, a) of its discounted return.

    Args:
        observation_space: what ObservationCodec takes.
        action_space: a Box of floats with finite bounds.
        architecture: the layers; `hidden` follow on whatever looks at images.
        critics: N.
        generator: source of the initial weights; a fixed seed without one.

    Attributes:
        actor: μ and its slow copy.
        critics: the Q_i and theirs.
        state_size: 0, it remembers nothing.
        standardize: None, observations are taken as they are.

    Raises:
        UserError: a space is not supported, or the network does not fit it.
    """

    state_size = 0
    standardize: layers.Standardize | None = None

    def __init__(
        self,
        observation_space: Space[Any],
        action_space: Space[Any],
        architecture: Architecture,
        critics: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        codec = ObservationCodec.of(observation_space)
        _check(action_space)
        actions = ActionCodec.of(action_space).shape
        generator = generator or torch.Generator()
        self.actor = WithTarget(_Actor(codec, math.prod(actions), architecture, generator))
        self.critics = WithTarget(
            _Critics(codec, math.prod(actions), architecture, critics, generator)
        )

    def policy(
        self, observations: Tensor, state: Tensor | None = None
    ) -> tuple[distributions.Deterministic, Tensor | None]:
        """μ(s) over [B] for observations [B, *O], and the state that was given."""
        return distributions.Deterministic(self.actor(observations)), state


def _check(action_space: Space[Any]) -> None:
    bounded = isinstance(action_space, spaces.Box) and action_space.is_bounded()
    if bounded and np.issubdtype(action_space.dtype, np.floating):
        return
    raise UserError(
        f"action space {one_line(action_space)} is not supported: a deterministic policy wants a "
        "Box of floats with finite bounds; a3c and a2c take others"
    )


class WithTarget(nn.Module, Generic[M]):
    """A module, and a slow copy of it that is not trained.

    In the flat layout of `SharedModel` what is trained comes first and what is not behind it, so
    the copy is the second half of it, in the same order.

    Args:
        module: whose parameters can all be trained.

    Attributes:
        target: the copy.
    """

    def __init__(self, module: M) -> None:
        super().__init__()
        assert all(parameter.requires_grad for parameter in module.parameters())
        self.online = module
        self.target = copy.deepcopy(module).requires_grad_(False)

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the module itself gives."""
        return cast(Tensor, self.online(*inputs))


@torch.no_grad()
def polyak_update_(flat: Tensor, tau: float) -> None:
    """Lets a slow copy follow its module: θ' ← (1 − τ) θ' + τ θ.

    Args:
        flat: θ and θ' of a `Tracked`, [2 P].
        tau: τ in [0, 1].

    Source: Lillicrap et al. 2016 (arXiv:1509.02971), section 3.
    """
    online, target = flat.chunk(2)
    target.lerp_(online, tau)


class _Actor(nn.Module):
    """μ(s): [B, *O] → [B, A] in −1..1."""

    def __init__(
        self,
        codec: ObservationCodec,
        actions: int,
        architecture: Architecture,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.front, size = _encoder(codec, architecture, generator)
        sizes = (size, *architecture.hidden, actions)
        self.layers = EnsembleMLP(1, sizes, architecture.activation, generator)

    def forward(self, observations: Tensor) -> Tensor:
        return torch.tanh(self.layers(self.front(observations))[0])


class _Critics(nn.Module):
    """Q_i(s, a): [B, *O] and [B, A] → [N, B]. They look at images with the same eyes."""

    def __init__(
        self,
        codec: ObservationCodec,
        actions: int,
        architecture: Architecture,
        critics: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.front, size = _encoder(codec, architecture, generator)
        sizes = (size + actions, *architecture.hidden, 1)
        self.layers = EnsembleMLP(critics, sizes, architecture.activation, generator)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        inputs = torch.cat([self.front(observations), actions], dim=-1)
        return cast(Tensor, self.layers(inputs)).squeeze(-1)

    def q1(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q_1(s, a) alone, [B]."""
        inputs = torch.cat([self.front(observations), actions], dim=-1)
        return cast(Tensor, self.layers(inputs, only=1))[0].squeeze(-1)


class EnsembleMLP(nn.Module):
    """N multilayer perceptrons side by side, which see the same: [B, I] → [N, B, O].

    Args:
        N: how many.
        sizes: I, the hidden layers, O.
        activation: between them, tanh or relu.
        generator: source of the weights, uniform in ±1/√fan-in, the last layer's in ±0.003.

    Source of the weights: Lillicrap et al. 2016 (arXiv:1509.02971), section 7.
    """

    def __init__(
        self, N: int, sizes: Sequence[int], activation: str, generator: torch.Generator
    ) -> None:
        super().__init__()
        self._activation_ = _IN_PLACE[activation]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        pairs = list(itertools.pairwise(sizes))
        for layer, (inputs, outputs) in enumerate(pairs):
            bound = _LAST if layer == len(pairs) - 1 else 1 / math.sqrt(inputs)
            weight, bias = torch.empty(N, inputs, outputs), torch.empty(N, 1, outputs)
            self.weights.append(nn.Parameter(weight.uniform_(-bound, bound, generator=generator)))
            self.biases.append(nn.Parameter(bias.uniform_(-bound, bound, generator=generator)))
        # To walk along: the lists above look every entry up by its name.
        self._layers = list(zip(self.weights, self.biases, strict=True))

    def forward(self, inputs: Tensor, only: int | None = None) -> Tensor:
        """What they give, [N, B, O]; with `only` that of the first so many."""
        layers = self._layers
        if only is not None:
            layers = [(weight[:only], bias[:only]) for weight, bias in layers]
        hidden = inputs.expand(len(layers[0][0]), *inputs.shape)
        for weight, bias in layers[:-1]:
            hidden = self._activation_(torch.bmm(hidden, weight).add_(bias))
        weight, bias = layers[-1]
        return torch.bmm(hidden, weight).add_(bias)


def _encoder(
    codec: ObservationCodec, architecture: Architecture, generator: torch.Generator
) -> tuple[nn.Module, int]:
    network = architecture.network
    if isinstance(network, str):
        return encoders.encoder(codec, network, generator)
    body, size = layers.custom_body(network, codec, generator)
    if not all(parameter.requires_grad for parameter in body.parameters()):
        raise UserError(
            "network has parameters that need no gradient, which slow copies cannot follow: "
            "compute with them in the environment, or let them learn"
        )
    return _Rows(copy.deepcopy(body)), size  # actor and critics must not share one


class _Rows(nn.Module):
    """A body of the caller's own, which was promised rows [T, B, *O]."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, rows: Tensor) -> Tensor:
        return cast(Tensor, self.body(rows.unsqueeze(0))).squeeze(0)
