"""Collection of single transitions into a replay buffer."""

from collections.abc import Callable
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from hogwild_rl.collect.replay import ReplayBuffer
from hogwild_rl.collect.rollout import Collector
from hogwild_rl.envs.codecs import EnvCodec


class TransitionCollector:
    """Steps vector environments and stores the transitions in a replay buffer.

    Attributes:
        observations: current observations, [B, *O].
        ended: True where the last step ended an episode, [B] bool.
        kept: number of transitions of the last step that were stored.
        steps, episodes, nonfinite_envs: as in `Collector`, for the last step; transitions of
            `nonfinite_envs` are not stored.

    Args:
        envs: vector environments with NEXT_STEP autoreset.
        env_codec: codec between the environments and the policy.
        replay: buffer to fill.
        seed: seed of the environments.
        lap: called with "act" or "env" at the end of that phase, to time it.
    """

    def __init__(
        self,
        envs: VectorEnv[Any, Any, Any],
        env_codec: EnvCodec,
        replay: ReplayBuffer,
        seed: int,
        lap: Callable[[str], None],
    ) -> None:
        self._collector, self._replay = Collector([envs], env_codec, 1, seed, lap), replay
        self.ended = torch.zeros(envs.num_envs, dtype=torch.bool)
        self.steps, self.kept = 0, 0
        self.episodes, self.nonfinite_envs = self._collector.episodes, list[int]()
        self.observations = self._collector.host.observations[-1].clone()
        replay.begin(self.observations.numpy())

    def step(self, actions: Tensor) -> None:
        """Steps every environment with actions in −1..1, [B, A]."""
        collector = self._collector
        rollout = collector.collect(lambda _observations, _state: (actions, None))
        terminated, truncated, valid = rollout.terminated[0], rollout.truncated[0], rollout.valid[0]
        self.steps, self.nonfinite_envs = collector.steps, collector.nonfinite_envs
        stored = valid.clone()
        stored[self.nonfinite_envs] = False
        self.kept = int(stored.sum())
        self.ended = terminated | truncated
        self.observations = rollout.observations[-1].clone()
        self._replay.add(
            actions.numpy(),
            rollout.rewards[0].numpy(),
            self.observations.numpy(),
            terminated.numpy(),
            stored.numpy(),
        )
