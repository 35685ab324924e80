"""Deterministic policy and Q-functions, each with a target network."""

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
    """Deterministic actor-critic: policy μ(s) in −1..1 and N critics Q_i(s, a).

    Args:
        observation_space: any space that ObservationCodec supports.
        action_space: a Box of floats with finite bounds.
        architecture: architecture of the layers; `hidden` follow the encoder.
        critics: number of critics N ≥ 1.
        generator: source of the initial weights; a fixed seed if None.

    Attributes:
        actor: μ and its target network.
        critics: the Q_i and their target networks.
        state_size, standardize: 0 and None: no recurrent state, no normalized observations.

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
        """Returns μ(s) over [B] for observations [B, *O], and the given state."""
        return distributions.Deterministic(self.actor(observations)), state


def _check(action_space: Space[Any]) -> None:
    bounded = isinstance(action_space, spaces.Box) and action_space.is_bounded()
    if bounded and np.issubdtype(action_space.dtype, np.floating):
        return
    raise UserError(
        f"action space {one_line(action_space)} is not supported: a deterministic policy needs a "
        "Box of floats with finite bounds; for other spaces use a3c or a2c"
    )


class WithTarget(nn.Module, Generic[M]):
    """Module with its target network.

    All parameters of the module must be trainable. The flat layout of `SharedModel` has them first
    and those of the target network, a copy without gradient, after them in the same order.
    """

    def __init__(self, module: M) -> None:
        super().__init__()
        assert all(parameter.requires_grad for parameter in module.parameters())
        self.online = module
        self.target = copy.deepcopy(module).requires_grad_(False)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns the output of the online module."""
        return cast(Tensor, self.online(*inputs))


@torch.no_grad()
def polyak_update_(flat: Tensor, tau: float) -> None:
    """Polyak averaging of a target network: θ' ← (1 − τ) θ' + τ θ, both in `flat`, [2 P].

    Source: Lillicrap et al. 2016 (arXiv:1509.02971), section 3.
    """
    online, target = flat.chunk(2)
    target.lerp_(online, tau)


class _Actor(nn.Module):
    """Actor μ(s): [B, *O] → [B, A] in −1..1."""

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
    """Critics Q_i(s, a): [B, *O] and [B, A] → [N, B], with a shared encoder."""

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
    """Ensemble of N MLPs with the same input, computed together: [B, I] → [N, B, O].

    Args:
        N: number of MLPs.
        sizes: I, the hidden layers, O.
        activation: tanh or relu, between the layers.
        generator: source of the weights, uniform in ±1/√fan-in, those of the last layer in ±0.003.

    Source of the initialization: Lillicrap et al. 2016 (arXiv:1509.02971), section 7.
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
        # A list, as iteration over nn.ParameterList looks up each entry by name.
        self._layers = list(zip(self.weights, self.biases, strict=True))

    def forward(self, inputs: Tensor, only: int | None = None) -> Tensor:
        """Returns the outputs, [N, B, O]; with `only`, those of the first `only` MLPs."""
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
            "network has parameters with requires_grad False, which target networks cannot track: "
            "make them trainable, or move what they compute into the environment"
        )
    return _CustomBody(copy.deepcopy(body)), size  # actor and critics must not share one


class _CustomBody(nn.Module):
    """Adapter for a custom body, which takes [T, B, *O]: [B, *O] → [B, F]."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, observations: Tensor) -> Tensor:
        return cast(Tensor, self.body(observations.unsqueeze(0))).squeeze(0)
