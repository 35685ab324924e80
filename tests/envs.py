"""Real environments for the tests: small, with known values, or with known faults."""

import multiprocessing
import os
import signal
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TransformAction

Step = tuple[Any, float, bool, bool, dict[str, Any]]


class Chain(gymnasium.Env[Any, Any]):
    """Five states in a row. Right costs nothing and pays 1 at the end; left pays 0.1 and ends.

    From the start, right four times is worth 1; left at once is what a myopic policy takes.
    """

    states = 5

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 1, (self.states,), np.float32)
        self.action_space = spaces.Discrete(2)

    def _observe(self) -> Any:
        return np.eye(self.states, dtype=np.float32)[self._state]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._state = 0
        return self._observe(), {}

    def step(self, action: Any) -> Step:
        if action == 0:
            return self._observe(), 0.1, True, False, {}
        self._state += 1
        end = self._state == self.states - 1
        return self._observe(), float(end), end, False, {}


class Clock(gymnasium.Env[Any, Any]):
    """Pays 1 per step and ends every 10 steps; observations say nothing, or the step of the ten."""

    length = 10

    def __init__(self, terminates: bool) -> None:
        self._terminates = terminates
        self.observation_space = spaces.Box(0, 1, (self.length + 1,), np.float32)
        self.action_space = spaces.Discrete(2)

    def _observe(self) -> Any:
        shown = self._step if self._terminates else 0
        return np.eye(self.length + 1, dtype=np.float32)[shown]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._step = 0
        return self._observe(), {}

    def step(self, action: Any) -> Step:
        self._step += 1
        end = self._step == self.length
        return self._observe(), 1.0, end and self._terminates, end and not self._terminates, {}


class Faulty(Chain):
    """A chain that meets its fault at the thousandth step."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self._fault, self._taken = fault, 0

    def step(self, action: Any) -> Step:
        self._taken += 1
        if self._taken == 1000:
            if self._fault == "raise":
                raise RuntimeError("the gearbox is on fire")
            if self._fault == "exit":
                os._exit(7)
            if self._fault == "segv":
                os.kill(os.getpid(), signal.SIGSEGV)
            if self._fault == "hang":
                time.sleep(3600)
        observation, reward, terminated, truncated, info = super().step(action)
        if self._fault == "nan" or (self._fault == "blip" and self._taken % 1000 == 0):
            reward = np.nan
        if self._fault == "blur" and self._taken % 1000 == 0:
            observation = np.full_like(observation, np.inf)
        return observation, reward, terminated, truncated, info


class Sleepy(Chain):
    """A chain whose steps take a millisecond."""

    def step(self, action: Any) -> Step:
        time.sleep(1e-3)
        return super().step(action)


class DiesInAChild(Chain):
    """A chain that ends every process it is made in, but for the first one."""

    def __init__(self) -> None:
        super().__init__()
        if multiprocessing.parent_process() is not None:
            os._exit(9)


class Pictures(Chain):
    """A chain whose observations are pictures: a white stripe where the chain stands."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0, 255, (20, 20, 3), np.uint8)

    def _observe(self) -> Any:
        picture = np.zeros((20, 20, 3), np.uint8)
        picture[:, 4 * self._state : 4 * self._state + 4] = 255
        return picture


class Words(Chain):
    """A chain whose observations are words, which are not supported."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Text(5)


class Choosy(Chain):
    """A chain whose actions are sequences, which are not supported."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Sequence(spaces.Discrete(2))


def steered(fault: str) -> gymnasium.Env[Any, Any]:
    """A chain with a fault, or without one, whose action is a number: above 0 is right."""
    wanted = spaces.Box(-1, 1, (1,), np.float32)
    return TransformAction(Faulty(fault), lambda action: int(action[0] > 0), wanted)


def truncated_clock() -> gymnasium.Env[Any, Any]:
    return Clock(terminates=False)


def terminated_clock() -> gymnasium.Env[Any, Any]:
    return Clock(terminates=True)


gymnasium.register("Chain-v0", entry_point=Chain, max_episode_steps=20)
gymnasium.register("Pictures-v0", entry_point=Pictures)
gymnasium.register("Words-v0", entry_point=Words)
gymnasium.register("Choosy-v0", entry_point=Choosy)
gymnasium.register("Sleepy-v0", entry_point=Sleepy)
gymnasium.register("DiesInAChild-v0", entry_point=DiesInAChild)
gymnasium.register("Steered-v0", entry_point=steered, kwargs={"fault": ""}, max_episode_steps=20)
for _fault in ("raise", "exit", "segv", "hang", "nan", "blip", "blur"):
    gymnasium.register(f"Faulty{_fault.title()}-v0", entry_point=Faulty, kwargs={"fault": _fault})
    gymnasium.register(
        f"Steered{_fault.title()}-v0",
        entry_point=steered,
        kwargs={"fault": _fault},
        max_episode_steps=20,
    )
