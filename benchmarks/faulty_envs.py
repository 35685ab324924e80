"""Environments with random faults, registered by importing this module.

    FaultyRaise/CartPole-v1   raises an exception in one of 5,000 steps on average
    FaultyNan/CartPole-v1     returns a NaN reward in one of 5,000 steps
    FaultySleep/CartPole-v1   hangs in one of 20,000 steps

The same faults exist for LunarLander-v3.
"""

import functools
import time
from typing import Any

import gymnasium
import numpy as np

STEPS_PER_FAULT = {"Raise": 5_000, "Nan": 5_000, "Sleep": 20_000}
ENVIRONMENTS = ("CartPole-v1", "LunarLander-v3")


class FaultyEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Wrapper that injects random faults of one type.

    Args:
        env: environment without faults.
        fault: Raise, Nan or Sleep.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], fault: str) -> None:
        super().__init__(env)
        self._fault, self._rng = fault, np.random.default_rng()

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps the environment, in some steps with the fault."""
        faulty = self._rng.random() * STEPS_PER_FAULT[self._fault] < 1
        if faulty and self._fault == "Raise":
            raise RuntimeError("injected fault")
        if faulty and self._fault == "Sleep":
            time.sleep(1e9)
        observation, reward, terminated, truncated, info = self.env.step(action)
        if faulty and self._fault == "Nan":
            reward = float("nan")
        return observation, reward, terminated, truncated, info


def make(name: str, fault: str, **options: Any) -> gymnasium.Env[Any, Any]:
    """Makes a registered environment with faults."""
    return FaultyEnv(gymnasium.make(name, **options), fault)


for _fault in STEPS_PER_FAULT:
    for _name in ENVIRONMENTS:
        gymnasium.register(
            f"Faulty{_fault}/{_name}",
            entry_point=functools.partial(make, _name, _fault),
            reward_threshold=gymnasium.spec(_name).reward_threshold,
        )
