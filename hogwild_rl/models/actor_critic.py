"""A policy and a value function over the same observations."""

import dataclasses
from typing import Any

import numpy as np
import torch
from gymnasium import Space
from torch import Tensor, nn

from hogwild_rl.envs.codecs import ObservationCodec
from hogwild_rl.errors import UserError
from hogwild_rl.models import distributions, encoders, layers
from hogwild_rl.models.distributions import StochasticDistribution


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a network looks like, apart from the spaces it serves.

    Attributes:
        network: auto, mlp, a CNN's name, or a function that makes a body for a space. auto takes
            A3C's CNN for images, and the pixels alone where they are too few for it.
        hidden: sizes of the hidden layers of an MLP.
        activation: tanh or relu.
        shared_trunk: one body under both heads, or one for each; with images, a memory or a
            body of the caller's own it is always one.
        lstm: size of the memory between body and heads, 0 for none.
        standardize: take running means off the numbers that are no image, or off a single image.
        state_dependent_std: the deviations of continuous actions depend on the observation.
        log_std_init: their logarithm at first.
        bfloat16: compute the bodies in it; parameters and heads stay float32.
    """

    network: str | layers.BodyMaker = "auto"
    hidden: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    shared_trunk: bool = False
    lstm: int = 0
    standardize: bool = False
    state_dependent_std: bool = False
    log_std_init: float = 0.0
    bfloat16: bool = False


class ActorCritic(nn.Module):
    """A policy π(a|s) and a value V(s).

    With a memory, π and V are those of the observations since the episode began. What it remembers
    is a tensor that callers carry, [2, B, H]; H is 0 without a memory.

    Args:
        observation_space: what ObservationCodec takes.
        action_space: Discrete, MultiDiscrete, MultiBinary or a Box of floats.
        architecture: layers.
        generator: source of the initial weights; a fixed seed without one.

    Attributes:
        state_size: H.
        standardize: what takes running means off, or None.

    Raises:
        UserError: a space is not supported, or the network does not fit it.
    """

    def __init__(
        self,
        observation_space: Space[Any],
        action_space: Space[Any],
        architecture: Architecture,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        codec = ObservationCodec.of(observation_space)
        generator = generator or torch.Generator()
        self._bfloat16 = architecture.bfloat16
        self._own = not isinstance(architecture.network, str)
        self.standardize = self._standardize(codec) if architecture.standardize else None
        self.policy_body, features = self._body(codec, architecture, generator)
        shared = architecture.shared_trunk or architecture.lstm or codec.images or self._own
        self.value_body = (
            self.policy_body if shared else self._body(codec, architecture, generator)[0]
        )
        self.state_size = architecture.lstm
        self.memory = None
        if architecture.lstm:
            self.memory = layers.LSTMCore(features, architecture.lstm, generator)
            features = architecture.lstm
        self.policy_head = distributions.head(
            action_space,
            features,
            generator,
            state_dependent_std=architecture.state_dependent_std,
            log_std_init=architecture.log_std_init,
        )
        self.value_head = layers.linear(features, 1, 1.0, generator)

    def policy(
        self, observations: Tensor, state: Tensor | None = None
    ) -> tuple[StochasticDistribution, Tensor | None]:
        """π(·|s) over [B] for observations [B, *O]; the value function is not computed.

        Args:
            observations: [B, *O].
            state: what is remembered of the observations before, [2, B, H]; nothing without it.

        Returns:
            The policy, and the state after these observations; without a memory, the state given.
        """
        inputs = self._inputs(observations)
        if self._own:  # it was promised rows [T, B, *O]
            features = self._features(self.policy_body, inputs.unsqueeze(0)).squeeze(0)
        else:
            features = self._features(self.policy_body, inputs)
        if self.memory is not None:
            state = self.memory.nothing(len(features)) if state is None else state
            state = self.memory.step(features, state)
            features = state[0]
        policy: StochasticDistribution = self.policy_head(features)
        return policy, state

    def act(
        self,
        observations: Tensor,
        state: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Actions sampled from π(·|s), [B, *A], and the next state; see `policy`."""
        policy, state = self.policy(observations, state)
        return policy.sample(generator), state

    def forward(
        self, observations: Tensor, state: Tensor | None = None, valid: Tensor | None = None
    ) -> tuple[StochasticDistribution, Tensor]:
        """π(·|s_t) for t = 0..T-1 and V(s_t) for t = 0..T, in one pass over a rollout.

        Args:
            observations: [T+1, B, *O]; the last row is only valued, nobody acted there.
            state: before the first row, [2, B, H]; nothing is remembered without it.
            valid: [T, B] bool; a row after one that is not valid begins an episode. All are
                valid without it.

        Returns:
            The policy over [T, B] and the values, [T+1, B].
        """
        inputs = self._inputs(observations)
        features = self._features(self.policy_body, inputs)
        if self.memory is not None:
            state = self.memory.nothing(features.shape[1]) if state is None else state
            if valid is None:
                valid = features.new_ones(features.shape[:2], dtype=torch.bool)
            features = self.memory(features, state, valid)
        policy: StochasticDistribution = self.policy_head(features[:-1])
        if self.value_body is not self.policy_body:
            features = self._features(self.value_body, inputs)
        return policy, self.value_head(features).squeeze(-1)

    def _inputs(self, observations: Tensor) -> Tensor:
        if isinstance(self.standardize, layers.Standardize):
            standard: Tensor = self.standardize(observations)
            return standard
        return observations  # the eye itself compares pictures with their mean

    def _features(self, body: nn.Module, inputs: Tensor) -> Tensor:
        if not self._bfloat16:
            features: Tensor = body(inputs)
            return features
        # Without a cache, so that nothing outlives a CUDA graph's recording.
        with torch.autocast(inputs.device.type, torch.bfloat16, cache_enabled=False):
            return body(inputs).float()  # type: ignore[no-any-return]

    def _standardize(self, codec: ObservationCodec) -> layers.Standardize | layers.MeanImageNorm:
        if codec.vector:
            return layers.Standardize(codec.vector)
        if self._own or codec.dtype != np.uint8:
            raise UserError(
                "normalize_observations is for vectors, and for a single image in a network of "
                "ours: leave it out"
            )
        return layers.MeanImageNorm(codec.images[0])

    def _body(
        self, codec: ObservationCodec, architecture: Architecture, generator: torch.Generator
    ) -> tuple[nn.Module, int]:
        """What turns rows [..., *O] into features [..., F], and F."""
        network, hidden = architecture.network, architecture.hidden
        if not isinstance(network, str):
            return layers.custom_body(network, codec, generator)
        contrast = self.standardize if isinstance(self.standardize, layers.MeanImageNorm) else None
        front, size = encoders.encoder(codec, network, generator, contrast)
        if isinstance(front, encoders.ConvEncoder):
            return front, size
        body = layers.mlp(size, hidden, architecture.activation, generator)
        if codec.images:
            body.insert(0, front)
        return body, hidden[-1] if hidden else size
