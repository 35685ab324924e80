"""A policy and a value function over the same observations."""

import dataclasses
from typing import Any

import torch
from gymnasium import Space, spaces
from torch import Tensor, nn

from hogwild_rl import UserError
from hogwild_rl.models import distributions, networks


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a network looks like, apart from the spaces it serves.

    Attributes:
        hidden: sizes of the hidden layers.
        activation: tanh or relu.
        shared_trunk: one body under both heads, or one for each.
    """

    hidden: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    shared_trunk: bool = False


class ActorCritic(nn.Module):
    """A policy π(a|s) and a value V(s).

    Args:
        observation_space: a Box with one axis.
        action_space: Discrete, counted from 0.
        architecture: layers.
        generator: source of the initial weights; a fixed seed without one.
        bfloat16: compute the bodies in bfloat16; parameters and heads stay float32.

    Raises:
        UserError: a space is not supported; the message names it.
    """

    def __init__(
        self,
        observation_space: Space[Any],
        action_space: Space[Any],
        architecture: Architecture,
        generator: torch.Generator | None = None,
        bfloat16: bool = False,
    ) -> None:
        super().__init__()
        self._bfloat16 = bfloat16
        inputs, actions = _observation_size(observation_space), _action_count(action_space)
        generator = generator or torch.Generator()
        hidden, activation = architecture.hidden, architecture.activation
        features = hidden[-1] if hidden else inputs
        self.policy_body = networks.mlp(inputs, hidden, activation, generator)
        self.value_body = (
            self.policy_body
            if architecture.shared_trunk
            else networks.mlp(inputs, hidden, activation, generator)
        )
        self.policy_head = networks.linear(features, actions, 0.01, generator)
        self.value_head = networks.linear(features, 1, 1.0, generator)

    def policy(self, observations: Tensor) -> distributions.Categorical:
        """π(·|s) for observations [..., *O]; the value function is not computed."""
        features = self._features(self.policy_body, observations)
        return distributions.Categorical(self.policy_head(features))

    def act(self, observations: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Actions sampled from π(·|s), [...], for observations [..., *O]."""
        return self.policy(observations).sample(generator)

    def forward(self, observations: Tensor) -> tuple[distributions.Categorical, Tensor]:
        """π(·|s_t) for t = 0..T-1 and V(s_t) for t = 0..T, in one pass over a rollout.

        Args:
            observations: [T+1, B, *O]; the last row is only valued, nobody acted there.

        Returns:
            The policy over [T, B] and the values, [T+1, B].
        """
        features = self._features(self.policy_body, observations)
        policy = distributions.Categorical(self.policy_head(features[:-1]))
        if self.value_body is not self.policy_body:
            features = self._features(self.value_body, observations)
        return policy, self.value_head(features).squeeze(-1)

    def _features(self, body: nn.Module, observations: Tensor) -> Tensor:
        if not observations.is_floating_point():
            observations = observations.float()
        if not self._bfloat16:
            features: Tensor = body(observations)
            return features
        # Without a cache, so that nothing outlives a CUDA graph's recording.
        with torch.autocast(observations.device.type, torch.bfloat16, cache_enabled=False):
            return body(observations).float()  # type: ignore[no-any-return]


def _observation_size(space: Space[Any]) -> int:
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise UserError(f"observation space {_line(space)} is not supported yet: a flat Box is")
    return int(space.shape[0])


def _action_count(space: Space[Any]) -> int:
    if not isinstance(space, spaces.Discrete) or space.start != 0:
        raise UserError(f"action space {_line(space)} is not supported yet: Discrete(n) is")
    return int(space.n)


def _line(space: Space[Any]) -> str:
    return " ".join(str(space).split())  # long bounds are printed over several lines
