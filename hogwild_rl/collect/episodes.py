"""Acting: whole episodes, side by side."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from hogwild_rl.collect import rollout
from hogwild_rl.collect.rollout import Act, Rollout
from hogwild_rl.envs.codecs import EnvCodec


class EpisodeCollector:
    """Plays one episode in each of B environments, over and over.

    Attributes:
        episodes: (undiscounted return, length) of each episode of the last `collect`, but for those
            of `broken` environments.
        steps: how many they took together.
        broken: environments that gave a reward or observation that is not finite.

    Args:
        envs: vector environments with NEXT_STEP autoreset.
        env_codec: between them and a policy without a memory.
        seed: of the environments.
        lap: called with "act" or "env" when that phase ends, to be timed.
    """

    def __init__(
        self,
        envs: VectorEnv[Any, Any, Any],
        env_codec: EnvCodec,
        seed: int,
        lap: Callable[[str], None],
    ) -> None:
        self.episodes: list[tuple[float, int]] = []
        self.steps = 0
        self.nonfinite_envs: list[int] = []
        self._envs, self._env_codec, self._lap = envs, env_codec, lap
        self._dtype = env_codec.observations.dtype
        self._seed: int | None = seed  # for the first reset; the streams go on from there

    @torch.no_grad()
    def collect(self, act: Act) -> Rollout:
        """As many rows as the longest episode has steps; an episode is valid up to its end."""
        encode, decode = self._env_codec.observations.rows, self._env_codec.actions.to_env
        running = np.ones(self._envs.num_envs, dtype=bool)
        nothing = torch.zeros(2, len(running), 0)
        observation, _ = self._envs.reset(seed=self._seed)
        self._seed = None
        seen, steps = [np.array(encode(observation), self._dtype)], []
        while running.any():
            actions = act(torch.from_numpy(seen[-1]), nothing)[0].numpy()
            self._lap("act")
            observation, reward, terminated, truncated, _ = self._envs.step(decode(actions))
            paid = np.where(running, reward, 0.0)  # not a product: what comes later may be NaN
            steps.append((actions, paid, terminated & running, truncated & running))
            seen.append(np.array(encode(observation), self._dtype))
            running = running & ~(terminated | truncated)
            self._lap("env")
        return self._rollout(np.stack(seen), *map(np.stack, zip(*steps, strict=True)))

    def _rollout(
        self, seen: Any, actions: Any, rewards: Any, terminated: Any, truncated: Any
    ) -> Rollout:
        ended = terminated | truncated
        valid = ended.cumsum(0) - ended == 0
        self.nonfinite_envs = rollout.nonfinite_envs(rewards, seen[1:])
        played = zip(rewards.sum(0).tolist(), valid.sum(0).tolist(), strict=True)
        self.episodes = [each for b, each in enumerate(played) if b not in self.nonfinite_envs]
        self.steps = int(valid.sum())
        paid = rewards.astype(np.float32)
        if self._env_codec.rewards is not None:
            self._env_codec.rewards(paid, ended, valid)
        paid[:, self.nonfinite_envs] = np.nan  # as in `Collector`: no gradient may come of it
        return Rollout(
            observations=torch.from_numpy(seen),
            state=torch.zeros(2, valid.shape[1], 0),
            actions=torch.from_numpy(actions),
            rewards=torch.from_numpy(paid),
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            valid=torch.from_numpy(valid),
        )
