"""Environments that fail now and then: registered by importing this module.

    TroubledRaise/CartPole-v1   raises once in 5,000 steps
    TroubledNan/CartPole-v1     pays NaN once in 5,000 steps
    TroubledSleep/CartPole-v1   never returns from a step once in 20,000

and the same for LunarLander-v3.
"""

import functools
import time
from typing import Any

import gymnasium
import numpy as np

TROUBLES = {"Raise": 5_000, "Nan": 5_000, "Sleep": 20_000}
ENVIRONMENTS = ("CartPole-v1", "LunarLander-v3")


class Troubled(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment with one kind of trouble.

    Args:
        env: without it.
        trouble: Raise, Nan or Sleep.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], trouble: str) -> None:
        super().__init__(env)
        self._trouble, self._rng = trouble, np.random.default_rng()

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps, with trouble now and then."""
        troubled = self._rng.random() * TROUBLES[self._trouble] < 1
        if troubled and self._trouble == "Raise":
            raise RuntimeError("trouble")
        if troubled and self._trouble == "Sleep":
            time.sleep(1e9)
        observation, reward, terminated, truncated, info = self.env.step(action)
        if troubled and self._trouble == "Nan":
            reward = float("nan")
        return observation, reward, terminated, truncated, info


def make(name: str, trouble: str, **options: Any) -> gymnasium.Env[Any, Any]:
    """A registered environment with trouble."""
    return Troubled(gymnasium.make(name, **options), trouble)


for _trouble in TROUBLES:
    for _name in ENVIRONMENTS:
        gymnasium.register(
            f"Troubled{_trouble}/{_name}",
            entry_point=functools.partial(make, _name, _trouble),
            reward_threshold=gymnasium.spec(_name).reward_threshold,
        )
