"""Environments that violate gymnasium's API, each in one way."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from tests import envs

NOT_SET = object()
_STEP = (np.zeros(5, np.float32), 0.0, False, False, {})


@dataclasses.dataclass(frozen=True)
class Fault:
    """Difference from a correct chain.

    Attributes:
        printed: part of the error message.
        spaces: functions that make the values of attributes.
        reset: maps the result of `reset` to the faulty one.
        step: maps the result of `step` to the faulty one.
    """

    printed: str
    spaces: Mapping[str, Callable[[], Any]] = dataclasses.field(default_factory=dict)
    reset: Callable[[Any], Any] = lambda result: result
    step: Callable[[Any], Any] = lambda result: result


class Altered(envs.Chain):
    """Chain with a fault."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self._fault = FAULTS[fault]
        for attribute, make in self._fault.spaces.items():
            space = make()
            if space is NOT_SET:
                delattr(self, attribute)
            else:
                setattr(self, attribute, space)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self._fault.reset(super().reset(seed=seed, options=options))

    def step(self, action: Any) -> Any:
        super().step(0)
        return self._fault.step(_STEP)


def bad_space(printed: str, make: Callable[[], Any], attribute: str = "observation_space") -> Fault:
    """Fault of a space that is invalid or not supported."""
    return Fault(printed, {attribute: make})


def bad_obs(printed: str, observation: Any, make: Callable[[], Any] | None = None) -> Fault:
    """Fault of an observation that is not in its space."""
    changed = {} if make is None else {"observation_space": make}
    return Fault(
        printed,
        changed,
        reset=lambda result: (observation, result[1]),
        step=lambda result: (observation, *result[1:]),
    )


def bad_step(printed: str, index: int, value: Any) -> Fault:
    """Fault of one of the five values that `step` returns."""
    return Fault(printed, step=lambda result: (*result[:index], value, *result[index + 1 :]))


def raises(error: BaseException) -> Callable[[Any], Any]:
    """Returns a function that raises the error."""

    def raising(_: Any) -> Any:
        raise error

    return raising


def gym_space(name: str) -> Any:
    """Space of the package gym, the predecessor of gymnasium."""
    return type(name, (), {"__module__": "gym.spaces"})()


def inverted() -> spaces.Box:
    """Box with low > high, which not every version's constructor rejects."""
    box = spaces.Box(0, 1, (2,))
    box.low, box.high = box.high, box.low
    return box


def dict_space() -> spaces.Dict:
    return spaces.Dict({"left": spaces.Box(0, 1, (2,)), "right": spaces.Discrete(3)})


def tuple_space() -> spaces.Tuple:
    return spaces.Tuple([spaces.Box(0, 1, (2,)), spaces.Discrete(3)])


def image_space() -> spaces.Box:
    return spaces.Box(0, 255, (8, 8, 3), np.uint8)


two, five = np.zeros(2, np.float32), np.zeros(5, np.float32)

SPACES = {
    "observation space missing": bad_space("observation_space is None", lambda: NOT_SET),
    "observation space None": bad_space("observation_space is None: set it", lambda: None),
    "observation space is a tuple": bad_space("is a tuple of 1: set it", lambda: (5,)),
    "observation space is a class": bad_space("is the class Box: set it", lambda: spaces.Box),
    "observation space of gym": bad_space("is gym.spaces.Box: set it", lambda: gym_space("Box")),
    "action space missing": bad_space("action_space is None", lambda: NOT_SET, "action_space"),
    "action space None": bad_space("action_space is None", lambda: None, "action_space"),
    "action space is a number": bad_space("action_space is int 2", lambda: 2, "action_space"),
    "Text": bad_space("Text(1, 5", lambda: spaces.Text(5)),
    "Sequence": bad_space("Sequence(", lambda: spaces.Sequence(spaces.Discrete(2))),
    "Graph": bad_space("Graph(", lambda: spaces.Graph(spaces.Discrete(2), None)),
    "Text in Dict": bad_space("Text(1, 5", lambda: spaces.Dict(word=spaces.Text(5))),
    "Text in Tuple in Dict": bad_space(
        "Text(1, 5", lambda: spaces.Dict(nested=spaces.Tuple([spaces.Text(5)]))
    ),
    "Box of 0": bad_space("a Box of [0] float32 is empty", lambda: spaces.Box(0, 1, (0,))),
    "Box of 3 x 0": bad_space("a Box of [3, 0] float32 is empty", lambda: spaces.Box(0, 1, (3, 0))),
    "empty Dict": bad_space("Dict() is empty", lambda: spaces.Dict({})),
    "empty Tuple": bad_space("Tuple() is empty", lambda: spaces.Tuple([])),
    "empty MultiDiscrete": bad_space("is empty", lambda: spaces.MultiDiscrete([])),
    "low above high": bad_space("has low > high", inverted),
    "Sequence actions": bad_space(
        "action space Sequence", lambda: spaces.Sequence(spaces.Discrete(2)), "action_space"
    ),
    "Dict actions": bad_space("action space Dict(", dict_space, "action_space"),
    "Tuple actions": bad_space("action space Tuple(", tuple_space, "action_space"),
    "Text actions": bad_space("action space Text(", lambda: spaces.Text(5), "action_space"),
    "integer Box actions": bad_space(
        "or Box of floats", lambda: spaces.Box(0, 9, (2,), np.int64), "action_space"
    ),
    "empty Box actions": bad_space("is empty", lambda: spaces.Box(0, 1, (0,)), "action_space"),
    "no MultiDiscrete actions": bad_space(
        "is empty", lambda: spaces.MultiDiscrete([]), "action_space"
    ),
    # gymnasium's constructors reject these, so making the environment fails.
    "Discrete of 0": bad_space("making it raised", lambda: spaces.Discrete(0)),
    "MultiBinary of 0": bad_space(
        "making it raised", lambda: spaces.MultiBinary(0), "action_space"
    ),
    "Box of objects": bad_space("making it raised", lambda: spaces.Box(0, 1, (2,), object)),
}

RESETS = {
    "reset returns only an observation": Fault("got an array of [5] float32", reset=lambda _: five),
    "reset returns only an observation of 2": Fault("got an array of [2]", reset=lambda _: two),
    "reset returns None": Fault("(observation, info), got None", reset=lambda _: None),
    "reset returns 3 values": Fault("got a tuple of 3", reset=lambda result: (*result, {})),
    "reset: info None": Fault("must be a dict, got None", reset=lambda result: (result[0], None)),
    "reset: info list": Fault("got a list of 0", reset=lambda result: (result[0], [])),
    "reset raises": Fault("reset() raised KeyError: 'key'", reset=raises(KeyError("key"))),
    "reset is not implemented": Fault(
        "reset() raised NotImplementedError", reset=raises(NotImplementedError())
    ),
    "reset raises a message of several lines": Fault(
        "raised ValueError: one two three (", reset=raises(ValueError("one\ntwo\n\nthree"))
    ),
    "reset exits": Fault("reset() raised SystemExit: 0", reset=lambda _: sys.exit(0)),
    "observation None": bad_obs("reset() returned None as observation", None),
    "observation list": bad_obs("returned a list of 5 as observation", [0.0] * 5),
    "observation int": bad_obs("returned int 0 as observation", 0),
    "observation str": bad_obs("returned str 'left' as observation", "left"),
    "observation dict": bad_obs("returned dict as observation", {"left": five}),
    "observation of wrong length": bad_obs("returned an array of [4] float32", five[:4]),
    "observation with an extra axis": bad_obs("an array of [1, 5] float32", five[None]),
    "observation of strings": bad_obs("an array of [5] <U1", np.array(list("abcde"))),
    "observation of objects": bad_obs("an array of [5] object", five.astype(object)),
    "NaN observation": bad_obs("non-finite numbers", five + np.nan),
    "infinite observation": bad_obs("non-finite numbers", five - np.inf),
    "float images": bad_obs("float64 as observation", np.zeros((8, 8, 3)), image_space),
    "int64 images": bad_obs(
        "int64 as observation, its space is a Box of [8, 8, 3] uint8",
        np.zeros((8, 8, 3), np.int64),
        image_space,
    ),
    "dict expected": bad_obs("returned an array of [2] float32", two, dict_space),
    "missing key": bad_obs("returned a dict of ['left']", {"left": two}, dict_space),
    "extra key": bad_obs("['left', 'right', 'up']", {"left": two, "right": 0, "up": 0}, dict_space),
    "dict item of wrong shape": bad_obs(
        "an array of [5] float32 as observation['left']", {"left": five, "right": 0}, dict_space
    ),
    "dict item None": bad_obs(
        "None as observation['right']", {"left": two, "right": None}, dict_space
    ),
    "tuple too short": bad_obs("a tuple of 1", (two,), tuple_space),
    "tuple expected": bad_obs("returned an array of [2] float32", two, tuple_space),
    "tuple item a float": bad_obs("float 0.5 as observation[1]", (two, 0.5), tuple_space),
    "Discrete too high": bad_obs("returned 3 as observation", 3, lambda: spaces.Discrete(3)),
    "Discrete too low": bad_obs(
        "returned 0 as observation", 0, lambda: spaces.Discrete(3, start=1)
    ),
    "Discrete float": bad_obs("returned float 1.5", 1.5, lambda: spaces.Discrete(3)),
    "Discrete array": bad_obs(
        "an array of [1] int64", np.zeros(1, np.int64), lambda: spaces.Discrete(3)
    ),
    "MultiDiscrete too high": bad_obs(
        "returned [0 3] as observation", np.array([0, 3]), lambda: spaces.MultiDiscrete([2, 3])
    ),
    "MultiBinary list": bad_obs("a list of 4", [0, 1, 0, 1], lambda: spaces.MultiBinary(4)),
    "MultiBinary floats": bad_obs(
        "an array of [4] float64", np.zeros(4), lambda: spaces.MultiBinary(4)
    ),
}

STEPS = {
    "step of gym": Fault(
        "got a tuple of 4: replace the old gym's done", step=lambda result: (*result[:2], False, {})
    ),
    "step returns 3 values": Fault("got a tuple of 3", step=lambda result: result[:3]),
    "step returns None": Fault("info), got None", step=lambda _: None),
    "step returns a dict": Fault("info), got dict", step=lambda _: {}),
    "step returns 6 values": Fault("got a tuple of 6", step=lambda result: (*result, {})),
    "step raises": Fault(
        "step() raised RuntimeError: failure", step=raises(RuntimeError("failure"))
    ),
    "step is not implemented": Fault(
        "step() raised NotImplementedError", step=raises(NotImplementedError())
    ),
    "step returns a wrong shape": bad_step("step() returned an array of [4] float32", 0, five[:4]),
    "step returns observation None": bad_step("step() returned None as observation", 0, None),
    "step returns complex observation": bad_step("complex64 as observation", 0, five * 1j),
    "reward None": bad_step("a number as reward, got None", 1, None),
    "reward str": bad_step("as reward, got str '1.0'", 1, "1.0"),
    "reward of 2": bad_step("as reward, got an array of [2] float32", 1, two),
    "reward array": bad_step("got an array of [1] float32", 1, two[:1]),
    "reward dict": bad_step("as reward, got dict", 1, {"left": 1.0}),
    "terminated None": bad_step("a bool as terminated, got None", 2, None),
    "terminated array": bad_step("as terminated, got an array of [1] bool", 2, two[:1] > 0),
    "terminated str": bad_step("as terminated, got str 'no'", 2, "no"),
    "terminated int": bad_step("as terminated, got int 2", 2, 2),
    "truncated None": bad_step("a bool as truncated, got None", 3, None),
    "truncated array": bad_step("as truncated, got an array of [2] bool", 3, two > 0),
    "truncated dict": bad_step("as truncated, got dict", 3, {}),
    "step: info None": bad_step("a dict as info, got None", 4, None),
    "step: info list": bad_step("a dict as info, got a list of 0", 4, []),
}

FAULTS: dict[str, Fault] = {**SPACES, **RESETS, **STEPS}


class ChangingShape(envs.Chain):
    """Chain whose observations change their shape in the second episode."""

    episodes = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        observation, info = super().reset(seed=seed, options=options)
        self.episodes += 1
        return observation if self.episodes == 1 else observation[:3], info


class NoSeed(envs.Chain):
    """Chain whose reset takes neither seed nor options."""

    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class NoOptions(envs.Chain):
    """Chain whose reset takes no options."""

    def reset(self, seed: int | None = None) -> Any:  # type: ignore[override]
        return super().reset(seed=seed)


class NoSeedWrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Wrapper whose reset takes neither seed nor options."""

    def reset(self) -> Any:  # type: ignore[override]
        return self.env.reset()


class RaisingSpace(envs.Chain):
    """Chain whose observation space raises."""

    @property
    def observation_space(self) -> Any:
        raise RuntimeError("failure")

    @observation_space.setter
    def observation_space(self, value: Any) -> None: ...


class RaisingClose(envs.Chain):
    """Chain whose close raises."""

    def close(self) -> None:
        raise OSError("failure")


class DuckTyped:
    """All methods of an environment without the base class."""

    observation_space, action_space = spaces.Box(0, 1, (5,)), spaces.Discrete(2)

    def reset(self, seed: Any = None, options: Any = None) -> Any:
        return five, {}

    def step(self, action: Any) -> Any:
        return _STEP


def wrapped() -> gymnasium.Env[Any, Any]:
    return NoSeedWrapper(envs.Chain())


def make_none() -> None: ...


def make_class() -> type:
    return envs.Chain


def make_raises() -> gymnasium.Env[Any, Any]:
    raise RuntimeError("simulated failure")


def make_exits() -> gymnasium.Env[Any, Any]:
    sys.exit("failure")


def make_sized(size: int) -> gymnasium.Env[Any, Any]:
    raise AssertionError(size)


OTHERS: dict[str, tuple[Any, str]] = {
    "shape changes later": (ChangingShape, "a second reset() returned an array of [3] float32"),
    "reset takes no seed": (NoSeed, "reset() of NoSeed does not take seed and options"),
    "reset takes no options": (
        NoOptions,
        "of NoOptions does not take seed and options: write def reset",
    ),
    "wrapper's reset takes no seed": (wrapped, "reset() of NoSeedWrapper does not take seed"),
    "space raises": (RaisingSpace, "observation_space raised RuntimeError: failure"),
    "close raises": (RaisingClose, "close() raised OSError: failure"),
    "not a subclass of Env": (DuckTyped, "must return a gymnasium.Env, got DuckTyped"),
    "None returned": (make_none, "must return a gymnasium.Env, got NoneType"),
    "class returned": (make_class, "must return a gymnasium.Env, got type"),
    "vector environment returned": (
        functools.partial(gymnasium.make_vec, "CartPole-v1", 2),
        "must return a gymnasium.Env, got CartPoleVectorEnv",
    ),
    "constructor raises": (make_raises, "making it raised RuntimeError: simulated failure"),
    "constructor exits": (make_exits, "making it raised SystemExit: failure"),
    "constructor has arguments": (make_sized, "missing 1 required positional argument: 'size'"),
}

for _number, _name in enumerate(FAULTS):
    gymnasium.register(
        f"Altered{_number}-v0",
        entry_point=Altered,
        kwargs={"fault": _name},
        max_episode_steps=20,  # adds a wrapper, which fails first
    )
