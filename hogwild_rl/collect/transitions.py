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
        envs, env_codec, seed, lap: as in `Collector`, for one group.
        replay: buffer to fill.
    """

    def __init__(
        self,
        envs: VectorEnv[Any, Any, Any],
        env_codec: EnvCodec,
        replay: ReplayBuffer,
        seed: int,
        lap: Callable[..., None],
    ) -> None:
        self._collector, self._replay = Collector([envs], env_codec, 1, seed, lap), replay
        self._row = {name: tensor.numpy() for name, tensor in vars(self._collector.host).items()}
        self.ended = torch.zeros(envs.num_envs, dtype=torch.bool)
        self.steps, self.kept = 0, 0
        self.episodes, self.nonfinite_envs = self._collector.episodes, list[int]()
        replay.begin(self._observe())

    def step(self, actions: Tensor) -> None:
        """Steps every environment with actions in −1..1, [B, A]."""
        collector, row = self._collector, self._row
        collector.collect(lambda _observations, _state: (actions, None))
        self.steps, self.nonfinite_envs = collector.steps, collector.nonfinite_envs
        stored = row["valid"][0].copy()
        stored[self.nonfinite_envs] = False
        self.kept = int(stored.sum())
        self.ended = torch.from_numpy(row["terminated"][0] | row["truncated"][0])
        rewards, terminated = row["rewards"][0], row["terminated"][0]
        self._replay.add(actions.numpy(), rewards, self._observe(), terminated, stored)

    def _observe(self) -> Any:
        """Copies the current observations."""
        observations = self._row["observations"][-1].copy()
        self.observations = torch.from_numpy(observations)
        return observations
