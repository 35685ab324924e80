"""Environments that cost nothing and look like Atari: random pictures of 4×84×84 bytes.

Importing this module registers Pictures-v0, in a single and in a vector form. What is left of the
rate when training with them is what acting, learning and copying cost.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

_SHAPE, _ACTIONS, _LENGTH, _KEPT = (4, 84, 84), 6, 1_000, 4
_SPACE = spaces.Box(0, 255, _SHAPE, np.uint8)


class Picture(gymnasium.Env[Any, Any]):
    """One of them."""

    observation_space = _SPACE
    action_space = spaces.Discrete(_ACTIONS)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """A first picture."""
        super().reset(seed=seed, options=options)
        self._steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Another picture."""
        del action
        self._steps += 1
        return self.observation_space.sample(), 0.0, False, self._steps == _LENGTH, {}


class Pictures(VectorEnv[Any, Any, Any]):
    """Many of them: a few batches of pictures in turn, so that nothing is drawn while measuring."""

    def __init__(self, num_envs: int, **_: Any) -> None:
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space, self.single_action_space = _SPACE, spaces.Discrete(_ACTIONS)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        rng = np.random.default_rng(0)
        self._batches = rng.integers(0, 256, (_KEPT, num_envs, *_SHAPE), dtype=np.uint8)
        self._rewards, self._no = np.zeros(num_envs), np.zeros(num_envs, dtype=bool)
        self._steps = 0

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """First pictures."""
        del seed, options
        self._steps = 0
        return self._batches[0], {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """More pictures; after 1,000 steps all episodes end, and the step after that resets."""
        del actions
        self._steps += 1
        ended = np.full(self.num_envs, self._steps % (_LENGTH + 1) == _LENGTH)
        return self._batches[self._steps % _KEPT], self._rewards, self._no, ended, {}


gymnasium.register("Pictures-v0", entry_point=Picture, vector_entry_point=Pictures)
