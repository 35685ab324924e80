"""Collection of single transitions into a replay buffer."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from hogwild_rl.collect import rollout
from hogwild_rl.collect.replay import ReplayBuffer
from hogwild_rl.envs import vectorize
from hogwild_rl.envs.codecs import EnvCodec


class TransitionCollector:
    """Steps vector environments and stores the transitions in a replay buffer.

    Attributes:
        observations: current observations, [B, *O].
        ended: True where the last step ended an episode, [B] bool.
        episodes: (undiscounted return, length) of the episodes that the last step ended.
        steps: number of valid transitions of the last step.
        kept: number of them that were stored.
        nonfinite_envs: environments that returned a non-finite reward or observation in the last
            step; their transitions are not stored, their episodes are aborted.

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
        B = envs.num_envs
        self._envs, self._env_codec, self._replay, self._lap = envs, env_codec, replay, lap
        self._resetting = np.zeros(B, dtype=bool)  # the next step only resets these
        self._returns, self._lengths = np.zeros(B), np.zeros(B, dtype=np.int64)
        self.ended = torch.zeros(B, dtype=torch.bool)
        self.episodes: list[tuple[float, int]] = []
        self.steps = self.kept = 0
        self.nonfinite_envs: list[int] = []
        rows = self._rows(envs.reset(seed=seed)[0])
        replay.begin(rows)
        self.observations = torch.from_numpy(rows)

    def step(self, actions: Tensor) -> None:
        """Steps every environment with actions in −1..1, [B, A]."""
        self._lap("act")
        observation, reward, terminated, truncated, _ = self._envs.step(
            self._env_codec.actions.to_env(actions.numpy())
        )
        valid = ~self._resetting
        rows = self._rows(observation)
        nonfinite = self._drop_nonfinite(reward, rows)
        kept = valid & ~nonfinite
        self._replay.add(actions.numpy(), reward, rows, terminated, kept)
        self.observations = torch.from_numpy(rows)
        self._returns += reward
        self._lengths += valid
        self._returns[nonfinite] = self._lengths[nonfinite] = 0
        self.steps, self.kept = int(valid.sum()), int(kept.sum())
        self._resetting = (terminated | truncated) & ~nonfinite
        self.ended = torch.from_numpy(self._resetting)
        self.episodes.clear()
        for b in np.flatnonzero(self._resetting):
            self.episodes.append((float(self._returns[b]), int(self._lengths[b])))
            self._returns[b] = self._lengths[b] = 0
        for index in self.nonfinite_envs:
            self._resetting[index] = vectorize.force_reset(self._envs, index)
        self._lap("env")

    def _drop_nonfinite(self, reward: Any, rows: Any) -> Any:
        """Returns [B] bool, True where a number is not finite; sets those observations to 0."""
        self.nonfinite_envs = rollout.nonfinite_envs(reward[None], rows[None])
        nonfinite = np.zeros(len(rows), dtype=bool)
        if self.nonfinite_envs:
            nonfinite[self.nonfinite_envs] = True
            rows[self.nonfinite_envs] = 0
        return nonfinite

    def _rows(self, observation: Any) -> Any:
        codec = self._env_codec.observations
        return np.array(codec.rows(observation), codec.dtype)
