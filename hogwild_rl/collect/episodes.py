"""Collection of whole episodes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from hogwild_rl.collect import rollout
from hogwild_rl.collect.rollout import Act, Rollout
from hogwild_rl.envs.codecs import EnvCodec


class EpisodeCollector:
    """Collects one episode from each of B environments per call of `collect`.

    Attributes:
        episodes: (undiscounted return, length) of each episode of the last `collect`, except those
            of `nonfinite_envs`.
        steps: total number of valid steps of the last `collect`.
        nonfinite_envs: environments that returned a non-finite reward or observation.

    Args:
        envs: vector environments with NEXT_STEP autoreset.
        env_codec: codec between the environments and a policy without LSTM.
        seed, lap: as in `Collector`.
        cut: called with the length of the open episodes and the steps of all environments; True
            ends `collect`, and no transition of its rollout is valid.
        arrays: as in `Collector`.
    """

    def __init__(
        self,
        envs: VectorEnv[Any, Any, Any],
        env_codec: EnvCodec,
        seed: int,
        lap: Callable[..., None],
        cut: Callable[[int, int], bool] = lambda _length, _steps: False,
        arrays: bool = False,
    ) -> None:
        self.episodes: list[tuple[float, int]] = []
        self.steps = 0
        self.nonfinite_envs: list[int] = []
        self._envs, self._env_codec, self._lap, self._cut = envs, env_codec, lap, cut
        self._on_arrays, self._dtype = arrays, env_codec.observations.dtype
        self._seed: int | None = seed  # for the first reset; later resets continue the streams

    @torch.no_grad()
    def collect(self, act: Act) -> Rollout:
        """Returns T rows, T the length of the longest episode; rows after an end are not valid."""
        encode, decode = self._env_codec.observations.rows, self._env_codec.actions.to_env
        running = np.ones(self._envs.num_envs, dtype=bool)
        empty_state = torch.zeros(2, len(running), 0)
        observation, _ = self._envs.reset(seed=self._seed)
        self._seed = None
        observations, steps = [np.array(encode(observation), self._dtype)], list[Any]()
        self.steps = 0
        while running.any() and not (steps and self._cut(len(steps), self.steps)):
            if self._on_arrays:
                actions = act(observations[-1], empty_state)[0]
            else:
                actions = act(torch.from_numpy(observations[-1]), empty_state)[0].numpy()
            self._lap("act")
            observation, reward, terminated, truncated, _ = self._envs.step(decode(actions))
            rewards = np.where(running, reward, 0.0)  # a product would keep NaN after the end
            steps.append((actions, rewards, terminated & running, truncated & running))
            observations.append(np.array(encode(observation), self._dtype))
            self.steps += int(running.sum())
            running = running & ~(terminated | truncated)
            self._lap("env")
        return self._rollout(np.stack(observations), *map(np.stack, zip(*steps, strict=True)))

    def _rollout(
        self, observations: Any, actions: Any, rewards: Any, terminated: Any, truncated: Any
    ) -> Rollout:
        ended = terminated | truncated
        valid = (ended.cumsum(0) - ended == 0) & ended.any(0).all()  # all are needed
        self.nonfinite_envs = rollout.nonfinite_envs(rewards, observations[1:])
        episodes = zip(rewards.sum(0).tolist(), valid.sum(0).tolist(), strict=True)
        whole = valid[0].all()
        self.episodes = [
            e for b, e in enumerate(episodes) if whole and b not in self.nonfinite_envs
        ]
        transformed = rewards.astype(np.float32)
        if self._env_codec.rewards is not None:
            self._env_codec.rewards(transformed, ended, valid)
        transformed[:, self.nonfinite_envs] = np.nan  # as in `Collector`: the update is dropped
        return Rollout(
            observations=torch.from_numpy(observations),
            state=torch.zeros(2, valid.shape[1], 0),
            actions=torch.from_numpy(actions),
            rewards=torch.from_numpy(transformed),
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            valid=torch.from_numpy(valid),
        )
