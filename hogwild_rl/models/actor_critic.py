"""Actor-critic network: a stochastic policy and a value function."""

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
    """Architecture of a network, independent of the spaces.

    Attributes:
        network: auto, mlp, a CNN's name, or a function that makes a body for a space. auto is the
            CNN of A3C for images, or their flattened pixels if they are too small for it.
        hidden: sizes of the hidden layers of an MLP.
        activation: tanh or relu.
        shared_trunk: True for one body under both heads, False for one each. With images, an LSTM
            or a custom body there is always one.
        lstm: number of LSTM units between body and heads, 0 for no LSTM.
        standardize: True to normalize vector entries, or a single image, by running moments.
        state_dependent_std: True if σ of continuous actions depends on the observation.
        log_std_init: initial log σ.
        bfloat16: True to compute the bodies in bfloat16; parameters and heads stay float32.
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
    """Actor-critic: policy π(a|s) and value V(s).

    With an LSTM, π and V depend on all observations since the start of the episode. The caller
    carries the recurrent state, [2, B, H]; H is 0 without an LSTM.

    Args:
        observation_space: any space that ObservationCodec supports.
        action_space: Discrete, MultiDiscrete, MultiBinary or a Box of floats.
        architecture: architecture of the layers.
        generator: source of the initial weights; a fixed seed if None.

    Attributes:
        state_size: number of LSTM units H, 0 without an LSTM.
        standardize: observation normalization, or None.
        is_mlp: True if both bodies are built-in MLPs of float32, without LSTM.

    Raises:
        UserError: a space is not supported, or the network does not fit it.
    """

    policy_head: distributions.LogitsHead | distributions.GaussianHead
    value_head: nn.Linear

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
        self._custom = not isinstance(architecture.network, str)
        self.standardize = self._standardize(codec) if architecture.standardize else None
        self.policy_body, features = self._body(codec, architecture, generator)
        shared = architecture.shared_trunk or architecture.lstm or codec.images or self._custom
        self.value_body = (
            self.policy_body if shared else self._body(codec, architecture, generator)[0]
        )
        # What `_inputs` and `_features` would leave as it is: acting calls neither.
        vectors = isinstance(self.standardize, layers.Standardize)
        self._plain = not (vectors or self._bfloat16 or self._custom)
        self.is_mlp = not (
            self._custom or codec.images or architecture.lstm or architecture.bfloat16
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
        """Returns π(·|s) over [B], without computing the value function.

        Args:
            observations: s, [B, *O].
            state: recurrent state after the previous observations, [2, B, H]; if None, zeros.

        Returns:
            The policy, and the next recurrent state; without an LSTM, the given state.
        """
        if self._plain:
            features = self.policy_body(observations)
        elif self._custom:  # custom bodies take [T, B, *O]
            rows = self._inputs(observations).unsqueeze(0)
            features = self._features(self.policy_body, rows).squeeze(0)
        else:
            features = self._features(self.policy_body, self._inputs(observations))
        if self.memory is not None:
            state = self.memory.initial_state(len(features)) if state is None else state
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
        """Samples actions from π(·|s), [B, *A]; returns them and the next state, see `policy`."""
        policy, state = self.policy(observations, state)
        return policy.sample(generator), state

    def forward(
        self, observations: Tensor, state: Tensor | None = None, valid: Tensor | None = None
    ) -> tuple[StochasticDistribution, Tensor]:
        """Returns π(·|s_t) for t = 0..T-1 and V(s_t) for all rows, in one pass over a rollout.

        Args:
            observations: s_t, [T+1, B, *O]; the last row has a value but no action. Or [T, B, *O]
                with `valid`.
            state: recurrent state before the first row, [2, B, H]; if None, zeros.
            valid: [T, B] bool; a row after one that is not valid starts an episode. If None, all
                are valid.

        Returns:
            The policy over [T, B] and the values, [T+1, B] or [T, B].
        """
        T = len(observations) - 1 if valid is None else len(valid)
        inputs = self._inputs(observations)
        features = self._features(self.policy_body, inputs)
        if self.memory is not None:
            state = self.memory.initial_state(features.shape[1]) if state is None else state
            if valid is None:
                valid = features.new_ones(features.shape[:2], dtype=torch.bool)
            features = self.memory(features, state, valid)
        policy: StochasticDistribution = self.policy_head(features[:T])
        if self.value_body is not self.policy_body:
            features = self._features(self.value_body, inputs)
        return policy, self.value_head(features).squeeze(-1)

    def _inputs(self, observations: Tensor) -> Tensor:
        if isinstance(self.standardize, layers.Standardize):
            standard: Tensor = self.standardize(observations)
            return standard
        return observations  # the encoder normalizes images

    def _features(self, body: nn.Module, inputs: Tensor) -> Tensor:
        if not self._bfloat16:
            features: Tensor = body(inputs)
            return features
        # Without the weight cache, whose tensors would outlive the capture of a CUDA graph.
        with torch.autocast(inputs.device.type, torch.bfloat16, cache_enabled=False):
            return body(inputs).float()  # type: ignore[no-any-return]

    def _standardize(self, codec: ObservationCodec) -> layers.Standardize | layers.MeanImageNorm:
        if codec.vector:
            return layers.Standardize(codec.vector)
        if self._custom or codec.dtype != np.uint8:
            raise UserError(
                "normalize_observations supports vectors, or a single image of integers with a "
                "built-in network: set it to False"
            )
        return layers.MeanImageNorm(codec.images[0])

    def _body(
        self, codec: ObservationCodec, architecture: Architecture, generator: torch.Generator
    ) -> tuple[nn.Module, int]:
        """Returns the body, which maps observations [..., *O] to features [..., F], and F."""
        network, hidden = architecture.network, architecture.hidden
        if not isinstance(network, str):
            return layers.custom_body(network, codec, generator)
        contrast = self.standardize if isinstance(self.standardize, layers.MeanImageNorm) else None
        encoder, size = encoders.encoder(codec, network, generator, contrast)
        if isinstance(encoder, encoders.ConvEncoder):
            return encoder, size
        body = layers.mlp(size, hidden, architecture.activation, generator)
        if codec.images:
            body.insert(0, encoder)
        return body, hidden[-1] if hidden else size
