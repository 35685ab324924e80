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
        if self._fault == "later" and self._taken > 1000:
            reward = np.nan
        if self._fault == "nan" or (self._fault == "blip" and self._taken % 1000 == 0):
            reward = np.nan
        if self._fault == "flare" and self._taken % 1000 == 0:
            reward = np.inf
        if self._fault == "blur" and self._taken % 1000 == 0:
            observation = np.full_like(observation, np.inf)
        return observation, reward, terminated, truncated, info


class Cursed(Clock):
    """A clock that raises in its own process whenever it is made, reset or stepped.

    Either wherever it lives in a process of its own, or only as environment 1.
    """

    def __init__(self, when: str, everywhere: bool) -> None:
        super().__init__(terminates=True)
        self._when, self._everywhere = when, everywhere
        self._meet("made")

    def _meet(self, now: str) -> None:
        cursed = "environment " if self._everywhere else "environment 1"
        if now == self._when and multiprocessing.current_process().name.startswith(cursed):
            raise RuntimeError("the gearbox is on fire")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._meet("reset")
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Step:
        self._meet("stepped")
        return super().step(action)


class Mortal(Clock):
    """A clock whose process ends with its 37th step."""

    def __init__(self) -> None:
        super().__init__(terminates=True)
        self._taken = 0

    def step(self, action: Any) -> Step:
        self._taken += 1
        if self._taken == 37:
            os._exit(7)
        return super().step(action)


class Superstitious(Clock):
    """A clock that does not take 13 for a seed, and falls asleep over a large one."""

    def __init__(self, large: float = np.inf) -> None:
        super().__init__(terminates=True)
        self.large = large

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        if seed == 13:
            raise ValueError("13")
        if seed is not None and seed > self.large:
            time.sleep(3600)
        return super().reset(seed=seed, options=options)


class Nested(Chain):
    """A chain whose observations are made of parts of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        bits, digits = spaces.MultiBinary(3), spaces.MultiDiscrete([2, 5])
        pair = spaces.Tuple([spaces.Discrete(5, start=1), bits])
        self.observation_space = spaces.Dict(box=self.observation_space, digits=digits, pair=pair)

    def _observe(self) -> Any:
        bits = np.array([self._state >> i & 1 for i in range(3)], np.int8)
        digits = np.array([self._state % 2, self._state])
        return {
            "box": super()._observe(),
            "digits": digits,
            "pair": (np.int64(self._state + 1), bits),
        }


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
gymnasium.register("Mortal-v0", entry_point=Mortal)
for _when in ("made", "reset", "stepped"):
    for _who, _everywhere in (("Cursed", True), ("OneCursed", False)):
        gymnasium.register(
            f"{_who}When{_when.title()}-v0",
            entry_point=Cursed,
            kwargs={"when": _when, "everywhere": _everywhere},
        )
gymnasium.register("Steered-v0", entry_point=steered, kwargs={"fault": ""}, max_episode_steps=20)
for _fault in ("raise", "exit", "segv", "hang", "nan", "blip", "blur", "flare", "later"):
    gymnasium.register(f"Faulty{_fault.title()}-v0", entry_point=Faulty, kwargs={"fault": _fault})
    gymnasium.register(
        f"Steered{_fault.title()}-v0",
        entry_point=steered,
        kwargs={"fault": _fault},
        max_episode_steps=20,
    )
