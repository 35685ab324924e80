"""Small environments with known values or known faults."""

import multiprocessing
import os
import signal
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from gymnasium.wrappers import TransformAction

from hogwild_rl.envs import make, vectorize

Step = tuple[Any, float, bool, bool, dict[str, Any]]


def make_vector_env(env: make.EnvSource, num_envs: int) -> VectorEnv[Any, Any, Any]:
    """Native vector environment where that is faster, else a SyncVectorEnv."""
    backend = vectorize.choose(env, "auto", num_envs, cores=1)
    return vectorize.make_envs(env, backend, num_envs, cores=1)


class Chain(gymnasium.Env[Any, Any]):
    """Chain MDP of five states, with an optimal return of 1; a myopic policy gets 0.1.

    Right: next state, terminal with reward 1 at the end. Left: terminal with reward 0.1.
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
    """Episodes of 10 steps of reward 1; observations are constant unless it terminates."""

    length = 10

    def __init__(self, terminates: bool) -> None:
        self._terminates = terminates
        self.observation_space = spaces.Box(0, 1, (self.length + 1,), np.float32)
        self.action_space = spaces.Discrete(2)

    def _observe(self) -> Any:
        index = self._step if self._terminates else 0
        return np.eye(self.length + 1, dtype=np.float32)[index]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._step = 0
        return self._observe(), {}

    def step(self, action: Any) -> Step:
        self._step += 1
        end = self._step == self.length
        return self._observe(), 1.0, end and self._terminates, end and not self._terminates, {}


class Faulty(Chain):
    """Chain with a fault at step 1000, at every 1000th step (Rare) or at every step (Nan)."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self._fault, self._taken = fault, 0

    def step(self, action: Any) -> Step:
        self._taken += 1
        if self._taken == 1000:
            if self._fault == "Raise":
                raise RuntimeError("simulated failure")
            if self._fault == "Exit":
                os._exit(7)
            if self._fault == "Segv":
                os.kill(os.getpid(), signal.SIGSEGV)
            if self._fault == "Hang":
                time.sleep(3600)
        observation, reward, terminated, truncated, info = super().step(action)
        if self._fault == "NanLater" and self._taken > 1000:
            reward = np.nan
        if self._fault == "Nan" or (self._fault == "RareNan" and self._taken % 1000 == 0):
            reward = np.nan
        if self._fault == "RareInf" and self._taken % 1000 == 0:
            reward = np.inf
        if self._fault == "RareInfObs" and self._taken % 1000 == 0:
            observation = np.full_like(observation, np.inf)
        return observation, reward, terminated, truncated, info


class FailingClock(Clock):
    """Clock that raises when it is made, reset or stepped.

    It raises in every environment process, or only in that of environment 1.
    """

    def __init__(self, when: str, everywhere: bool) -> None:
        super().__init__(terminates=True)
        self._when, self._everywhere = when, everywhere
        self._raise_if("made")

    def _raise_if(self, now: str) -> None:
        failing = "environment " if self._everywhere else "environment 1"
        if now == self._when and multiprocessing.current_process().name.startswith(failing):
            raise RuntimeError("simulated failure")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._raise_if("reset")
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Step:
        self._raise_if("stepped")
        return super().step(action)


class ExitingClock(Clock):
    """Clock whose process exits in its 37th step."""

    def __init__(self) -> None:
        super().__init__(terminates=True)
        self._taken = 0

    def step(self, action: Any) -> Step:
        self._taken += 1
        if self._taken == 37:
            os._exit(7)
        return super().step(action)


class SeedSensitiveClock(Clock):
    """Clock whose reset raises for seed 13 and hangs for large seeds."""

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
    """Chain with observations in a Dict of Box, MultiDiscrete and Tuple."""

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


class Slow(Chain):
    """Chain whose steps take one millisecond."""

    def step(self, action: Any) -> Step:
        time.sleep(1e-3)
        return super().step(action)


class ExitsInChild(Chain):
    """Chain that exits every child process in which it is made."""

    def __init__(self) -> None:
        super().__init__()
        if multiprocessing.parent_process() is not None:
            os._exit(9)


class Images(Chain):
    """Chain with image observations: a white stripe marks the state."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0, 255, (20, 20, 3), np.uint8)

    def _observe(self) -> Any:
        image = np.zeros((20, 20, 3), np.uint8)
        image[:, 4 * self._state : 4 * self._state + 4] = 255
        return image


class TextObservations(Chain):
    """Chain with an unsupported observation space."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Text(5)


class SequenceActions(Chain):
    """Chain with an unsupported action space."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Sequence(spaces.Discrete(2))


def continuous_chain(fault: str) -> gymnasium.Env[Any, Any]:
    """Chain with a continuous action: above 0 is right. An empty fault is none."""
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    return TransformAction(Faulty(fault), lambda action: int(action[0] > 0), action_space)


def truncated_clock() -> gymnasium.Env[Any, Any]:
    return Clock(terminates=False)


def terminated_clock() -> gymnasium.Env[Any, Any]:
    return Clock(terminates=True)


gymnasium.register("Chain-v0", entry_point=Chain, max_episode_steps=20)
gymnasium.register("Images-v0", entry_point=Images)
gymnasium.register("TextObservations-v0", entry_point=TextObservations)
gymnasium.register("SequenceActions-v0", entry_point=SequenceActions)
gymnasium.register("Slow-v0", entry_point=Slow)
gymnasium.register("ExitsInChild-v0", entry_point=ExitsInChild)
gymnasium.register("ExitingClock-v0", entry_point=ExitingClock)
for _when in ("made", "reset", "stepped"):
    for _prefix, _everywhere in (("Failing", True), ("OneFailing", False)):
        gymnasium.register(
            f"{_prefix}When{_when.title()}-v0",
            entry_point=FailingClock,
            kwargs={"when": _when, "everywhere": _everywhere},
        )
_FAULTS = ("Raise", "Exit", "Segv", "Hang", "Nan", "NanLater", "RareNan", "RareInf", "RareInfObs")
for _fault in _FAULTS:
    gymnasium.register(f"Faulty{_fault}-v0", entry_point=Faulty, kwargs={"fault": _fault})
for _fault in ("", *_FAULTS):
    gymnasium.register(
        f"Continuous{_fault}-v0",
        entry_point=continuous_chain,
        kwargs={"fault": _fault},
        max_episode_steps=20,
    )
