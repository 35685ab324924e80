"""Environments with negligible cost and the observations of Atari: random images, 4×84×84 bytes.

Importing this module registers Pictures-v0 as a single and as a vector environment. Training on
them measures the cost of acting, learning and copying alone.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

_SHAPE, _ACTIONS, _EPISODE_STEPS, _NUM_BATCHES = (4, 84, 84), 6, 1_000, 4
_SPACE = spaces.Box(0, 255, _SHAPE, np.uint8)


class Picture(gymnasium.Env[Any, Any]):
    """Single environment with random images."""

    observation_space = _SPACE
    action_space = spaces.Discrete(_ACTIONS)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode."""
        super().reset(seed=seed, options=options)
        self._steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Returns a random image and reward 0; truncates after 1,000 steps."""
        del action
        self._steps += 1
        return self.observation_space.sample(), 0.0, False, self._steps == _EPISODE_STEPS, {}


class Pictures(VectorEnv[Any, Any, Any]):
    """Vector environment that cycles through a few batches of images, sampled in advance."""

    def __init__(self, num_envs: int, **_: Any) -> None:
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space, self.single_action_space = _SPACE, spaces.Discrete(_ACTIONS)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        rng = np.random.default_rng(0)
        self._batches = rng.integers(0, 256, (_NUM_BATCHES, num_envs, *_SHAPE), dtype=np.uint8)
        self._rewards, self._false = np.zeros(num_envs), np.zeros(num_envs, dtype=bool)
        self._steps = 0

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Starts all episodes."""
        del seed, options
        self._steps = 0
        return self._batches[0], {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Returns the next batch; truncates after 1,000 steps, and the step after that resets."""
        del actions
        self._steps += 1
        truncated = np.full(self.num_envs, self._steps % (_EPISODE_STEPS + 1) == _EPISODE_STEPS)
        return self._batches[self._steps % _NUM_BATCHES], self._rewards, self._false, truncated, {}


gymnasium.register("Pictures-v0", entry_point=Picture, vector_entry_point=Pictures)
