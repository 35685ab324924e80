"""Acting: one step of every environment at a time, into a replay."""

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
    """Steps vector environments and keeps what came of it.

    Attributes:
        observations: in which the next actions are chosen, [B, *O].
        ended: where an episode ended with the last step, [B] bool.
        episodes: (undiscounted return, length) of the episodes that did.
        steps: valid transitions of the last step.
        kept: how many of them are in the replay.
        broken: environments that gave a reward or observation that is not finite in it; what they
            gave is not kept, their episodes are given up.

    Args:
        envs: vector environments with NEXT_STEP autoreset.
        env_codec: between them and the policy.
        replay: what is filled.
        seed: of the environments.
        lap: called with "act" or "env" when that phase ends, to be timed.
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
        self._resetting = np.zeros(B, dtype=bool)  # these only reset in the step to come
        self._returns, self._lengths = np.zeros(B), np.zeros(B, dtype=np.int64)
        self.ended = torch.zeros(B, dtype=torch.bool)
        self.episodes: list[tuple[float, int]] = []
        self.steps = self.kept = 0
        self.nonfinite_envs: list[int] = []
        rows = self._rows(envs.reset(seed=seed)[0])
        replay.begin(rows)
        self.observations = torch.from_numpy(rows)

    def step(self, actions: Tensor) -> None:
        """Takes one step with actions in −1..1, [B, A]."""
        self._lap("act")
        observation, reward, terminated, truncated, _ = self._envs.step(
            self._env_codec.actions.to_env(actions.numpy())
        )
        valid = ~self._resetting
        rows = self._rows(observation)
        broken = self._drop_nonfinite(reward, rows)
        kept = valid & ~broken
        self._replay.add(actions.numpy(), reward, rows, terminated, kept)
        self.observations = torch.from_numpy(rows)
        self._returns += reward
        self._lengths += valid
        self._returns[broken] = self._lengths[broken] = 0
        self.steps, self.kept = int(valid.sum()), int(kept.sum())
        self._resetting = (terminated | truncated) & ~broken
        self.ended = torch.from_numpy(self._resetting)
        self.episodes.clear()
        for b in np.flatnonzero(self._resetting):
            self.episodes.append((float(self._returns[b]), int(self._lengths[b])))
            self._returns[b] = self._lengths[b] = 0
        for number in self.nonfinite_envs:
            self._resetting[number] = vectorize.force_reset(self._envs, number)
        self._lap("env")

    def _drop_nonfinite(self, reward: Any, rows: Any) -> Any:
        """Where numbers are not finite, [B] bool; their observations are shown as 0."""
        self.nonfinite_envs = rollout.nonfinite_envs(reward[None], rows[None])
        where = np.zeros(len(rows), dtype=bool)
        if self.nonfinite_envs:
            where[self.nonfinite_envs] = True
            rows[self.nonfinite_envs] = 0
        return where

    def _rows(self, observation: Any) -> Any:
        seen = self._env_codec.observations
        return np.array(seen.rows(observation), seen.dtype)
