"""Environments that break gymnasium's contract, each in one way."""

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
_FIVE = (np.zeros(5, np.float32), 0.0, False, False, {})


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is different from a chain that keeps the contract.

    Attributes:
        printed: what the refusal says of it.
        spaces: attributes set to other spaces, made anew for every environment.
        reset: turns what reset gives into what it gives instead.
        step: likewise.
    """

    printed: str
    spaces: Mapping[str, Callable[[], Any]] = dataclasses.field(default_factory=dict)
    reset: Callable[[Any], Any] = lambda given: given
    step: Callable[[Any], Any] = lambda given: given


class Altered(envs.Chain):
    """A chain with a fault."""

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
        return self._fault.step(_FIVE)


def space(printed: str, make: Callable[[], Any], attribute: str = "observation_space") -> Fault:
    """A space that is none, or none that can be learnt in."""
    return Fault(printed, {attribute: make})


def seen(printed: str, observation: Any, make: Callable[[], Any] | None = None) -> Fault:
    """An observation that is not one of the space."""
    changed = {} if make is None else {"observation_space": make}
    return Fault(
        printed,
        changed,
        reset=lambda given: (observation, given[1]),
        step=lambda given: (observation, *given[1:]),
    )


def stepped(printed: str, index: int, value: Any) -> Fault:
    """One of the five parts that a step gives is something else."""
    return Fault(printed, step=lambda given: (*given[:index], value, *given[index + 1 :]))


def raises(error: BaseException) -> Callable[[Any], Any]:
    """What raises in place of giving something."""

    def raising(_: Any) -> Any:
        raise error

    return raising


def old(kind: str) -> Any:
    """Something of the package that gymnasium came from."""
    return type(kind, (), {"__module__": "gym.spaces"})()


def beginning(first: Any, second: Any) -> Callable[[Any], Any]:
    """What reset gives at first, and afterwards."""
    given = iter([first])
    return lambda _: next(given, second)


def inverted() -> spaces.Box:
    """Bounds in the wrong order; the constructor refuses them, but not everywhere."""
    box = spaces.Box(0, 1, (2,))
    box.low, box.high = box.high, box.low
    return box


def parts() -> spaces.Dict:
    return spaces.Dict({"left": spaces.Box(0, 1, (2,)), "right": spaces.Discrete(3)})


def pair() -> spaces.Tuple:
    return spaces.Tuple([spaces.Box(0, 1, (2,)), spaces.Discrete(3)])


def pixels() -> spaces.Box:
    return spaces.Box(0, 255, (8, 8, 3), np.uint8)


two, five = np.zeros(2, np.float32), np.zeros(5, np.float32)

SPACES = {
    "no observation space": space("observation_space is None", lambda: NOT_SET),
    "observation space None": space("observation_space is None: set it", lambda: None),
    "observation space of another kind": space("is a tuple of 1: set it", lambda: (5,)),
    "observation space a class": space("is the class Box: set it", lambda: spaces.Box),
    "observation space of gym": space("is gym.spaces.Box: set it", lambda: old("Box")),
    "no action space": space("action_space is None", lambda: NOT_SET, "action_space"),
    "action space None": space("action_space is None", lambda: None, "action_space"),
    "action space a number": space("action_space is int 2", lambda: 2, "action_space"),
    "words": space("Text(1, 5", lambda: spaces.Text(5)),
    "sequences": space("Sequence(", lambda: spaces.Sequence(spaces.Discrete(2))),
    "graphs": space("Graph(", lambda: spaces.Graph(spaces.Discrete(2), None)),
    "words in a dict": space("Text(1, 5", lambda: spaces.Dict(word=spaces.Text(5))),
    "words in a tuple in a dict": space(
        "Text(1, 5", lambda: spaces.Dict(nested=spaces.Tuple([spaces.Text(5)]))
    ),
    "no numbers": space("a Box of [0] float32 is empty", lambda: spaces.Box(0, 1, (0,))),
    "no columns": space("a Box of [3, 0] float32 is empty", lambda: spaces.Box(0, 1, (3, 0))),
    "empty dict": space("Dict() is empty", lambda: spaces.Dict({})),
    "empty tuple": space("Tuple() is empty", lambda: spaces.Tuple([])),
    "no choices": space("is empty", lambda: spaces.MultiDiscrete([])),
    "low above high": space("has low > high", inverted),
    "sequences of actions": space(
        "action space Sequence", lambda: spaces.Sequence(spaces.Discrete(2)), "action_space"
    ),
    "actions in a dict": space("action space Dict(", parts, "action_space"),
    "actions in a tuple": space("action space Tuple(", pair, "action_space"),
    "actions of words": space("action space Text(", lambda: spaces.Text(5), "action_space"),
    "actions of whole numbers": space(
        "or Box of floats", lambda: spaces.Box(0, 9, (2,), np.int64), "action_space"
    ),
    "no actions": space("is empty", lambda: spaces.Box(0, 1, (0,)), "action_space"),
    "no choices of actions": space("is empty", lambda: spaces.MultiDiscrete([]), "action_space"),
    # gymnasium refuses these where they are made, and with them the environment.
    "Discrete of 0": space("making it raised", lambda: spaces.Discrete(0)),
    "MultiBinary of 0": space("making it raised", lambda: spaces.MultiBinary(0), "action_space"),
    "Box of objects": space("making it raised", lambda: spaces.Box(0, 1, (2,), object)),
}

RESETS = {
    "reset gives an observation only": Fault("got an array of [5] float32", reset=lambda _: five),
    "reset gives an observation of two": Fault("got an array of [2]", reset=lambda _: two),
    "reset gives None": Fault("(observation, info), got None", reset=lambda _: None),
    "reset gives three": Fault("got a tuple of 3", reset=lambda given: (*given, {})),
    "reset gives no info": Fault("must be a dict, got None", reset=lambda given: (given[0], None)),
    "reset gives a list as info": Fault("got a list of 0", reset=lambda given: (given[0], [])),
    "reset raises": Fault("reset() raised KeyError: 'key'", reset=raises(KeyError("key"))),
    "reset is not written": Fault(
        "reset() raised NotImplementedError", reset=raises(NotImplementedError())
    ),
    "reset raises many lines": Fault(
        "raised ValueError: one two three (", reset=raises(ValueError("one\ntwo\n\nthree"))
    ),
    "reset leaves": Fault("reset() raised SystemExit: 0", reset=lambda _: sys.exit(0)),
    "None seen": seen("reset() returned None as observation", None),
    "a list seen": seen("returned a list of 5 as observation", [0.0] * 5),
    "a number seen": seen("returned int 0 as observation", 0),
    "a word seen": seen("returned str 'left' as observation", "left"),
    "a dict seen": seen("returned dict as observation", {"left": five}),
    "too few seen": seen("returned an array of [4] float32", five[:4]),
    "an axis too many": seen("an array of [1, 5] float32", five[None]),
    "words in an array": seen("an array of [5] <U1", np.array(list("abcde"))),
    "objects seen": seen("an array of [5] object", five.astype(object)),
    "NaN seen": seen("non-finite numbers", five + np.nan),
    "infinity seen": seen("non-finite numbers", five - np.inf),
    "floats as pixels": seen("float64 as observation", np.zeros((8, 8, 3)), pixels),
    "whole numbers as pixels": seen(
        "int64 as observation, its space is a Box of [8, 8, 3] uint8",
        np.zeros((8, 8, 3), np.int64),
        pixels,
    ),
    "no dict": seen("returned an array of [2] float32", two, parts),
    "a key is missing": seen("returned a dict of ['left']", {"left": two}, parts),
    "a key too many": seen("['left', 'right', 'up']", {"left": two, "right": 0, "up": 0}, parts),
    "a part of another shape": seen(
        "an array of [5] float32 as observation['left']", {"left": five, "right": 0}, parts
    ),
    "a part that is None": seen(
        "None as observation['right']", {"left": two, "right": None}, parts
    ),
    "a tuple too short": seen("a tuple of 1", (two,), pair),
    "no tuple": seen("returned an array of [2] float32", two, pair),
    "a part of a tuple": seen("float 0.5 as observation[1]", (two, 0.5), pair),
    "a choice too high": seen("returned 3 as observation", 3, lambda: spaces.Discrete(3)),
    "a choice too low": seen("returned 0 as observation", 0, lambda: spaces.Discrete(3, start=1)),
    "half a choice": seen("returned float 1.5", 1.5, lambda: spaces.Discrete(3)),
    "a choice in an array": seen(
        "an array of [1] int64", np.zeros(1, np.int64), lambda: spaces.Discrete(3)
    ),
    "choices too high": seen(
        "returned [0 3] as observation", np.array([0, 3]), lambda: spaces.MultiDiscrete([2, 3])
    ),
    "bits in a list": seen("a list of 4", [0, 1, 0, 1], lambda: spaces.MultiBinary(4)),
    "bits of floats": seen("an array of [4] float64", np.zeros(4), lambda: spaces.MultiBinary(4)),
}

STEPS = {
    "step of the old gym": Fault(
        "got a tuple of 4: replace the old gym's done", step=lambda given: (*given[:2], False, {})
    ),
    "step gives three": Fault("got a tuple of 3", step=lambda given: given[:3]),
    "step gives None": Fault("info), got None", step=lambda _: None),
    "step gives a dict": Fault("info), got dict", step=lambda _: {}),
    "step gives six": Fault("got a tuple of 6", step=lambda given: (*given, {})),
    "step raises": Fault(
        "step() raised RuntimeError: on fire", step=raises(RuntimeError("on fire"))
    ),
    "step is not written": Fault(
        "step() raised NotImplementedError", step=raises(NotImplementedError())
    ),
    "step shows too few": stepped("step() returned an array of [4] float32", 0, five[:4]),
    "step shows None": stepped("step() returned None as observation", 0, None),
    "step shows complex numbers": stepped("complex64 as observation", 0, five * 1j),
    "no reward": stepped("a number as reward, got None", 1, None),
    "a word as reward": stepped("as reward, got str '1.0'", 1, "1.0"),
    "two rewards": stepped("as reward, got an array of [2] float32", 1, two),
    "a reward in an array": stepped("got an array of [1] float32", 1, two[:1]),
    "rewards in a dict": stepped("as reward, got dict", 1, {"left": 1.0}),
    "terminated None": stepped("a bool as terminated, got None", 2, None),
    "terminated an array": stepped("as terminated, got an array of [1] bool", 2, two[:1] > 0),
    "terminated a word": stepped("as terminated, got str 'no'", 2, "no"),
    "terminated a number": stepped("as terminated, got int 2", 2, 2),
    "truncated None": stepped("a bool as truncated, got None", 3, None),
    "truncated an array": stepped("as truncated, got an array of [2] bool", 3, two > 0),
    "truncated the info": stepped("as truncated, got dict", 3, {}),
    "step gives no info": stepped("a dict as info, got None", 4, None),
    "step gives a list as info": stepped("a dict as info, got a list of 0", 4, []),
}

FAULTS: dict[str, Fault] = {**SPACES, **RESETS, **STEPS}


class Forgetful(envs.Chain):
    """Changes the shape of its observations from its second episode on."""

    episodes = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        observation, info = super().reset(seed=seed, options=options)
        self.episodes += 1
        return observation if self.episodes == 1 else observation[:3], info


class Unseeded(envs.Chain):
    """Knows nothing of seeds."""

    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class Seeded(envs.Chain):
    """Knows nothing of options."""

    def reset(self, seed: int | None = None) -> Any:  # type: ignore[override]
        return super().reset(seed=seed)


class Careless(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A wrapper that knows nothing of seeds."""

    def reset(self) -> Any:  # type: ignore[override]
        return self.env.reset()


class Hidden(envs.Chain):
    """Has a space that cannot be asked for."""

    @property
    def observation_space(self) -> Any:
        raise RuntimeError("the lens is covered")

    @observation_space.setter
    def observation_space(self, value: Any) -> None: ...


class Unclosable(envs.Chain):
    """Cannot be closed."""

    def close(self) -> None:
        raise OSError("the door is stuck")


class Duck:
    """Has all that an environment has, and is none."""

    observation_space, action_space = spaces.Box(0, 1, (5,)), spaces.Discrete(2)

    def reset(self, seed: Any = None, options: Any = None) -> Any:
        return five, {}

    def step(self, action: Any) -> Any:
        return _FIVE


def careless() -> gymnasium.Env[Any, Any]:
    return Careless(envs.Chain())


def nothing() -> None: ...


def itself() -> type:
    return envs.Chain


def on_fire() -> gymnasium.Env[Any, Any]:
    raise RuntimeError("the gearbox is on fire")


def left() -> gymnasium.Env[Any, Any]:
    sys.exit("not today")


def wanting(size: int) -> gymnasium.Env[Any, Any]:
    raise AssertionError(size)


OTHERS: dict[str, tuple[Any, str]] = {
    "shape changes later": (Forgetful, "a second reset() returned an array of [3] float32"),
    "reset takes no seed": (Unseeded, "reset() of Unseeded does not take seed and options"),
    "reset takes no options": (Seeded, "of Seeded does not take seed and options: write def reset"),
    "a wrapper takes no seed": (careless, "reset() of Careless does not take seed"),
    "a space that raises": (Hidden, "observation_space raised RuntimeError: the lens is covered"),
    "close raises": (Unclosable, "close() raised OSError: the door is stuck"),
    "no environment but like one": (Duck, "must return a gymnasium.Env, got Duck"),
    "nothing made": (nothing, "must return a gymnasium.Env, got NoneType"),
    "a class made": (itself, "must return a gymnasium.Env, got type"),
    "many made": (
        functools.partial(gymnasium.make_vec, "CartPole-v1", 2),
        "must return a gymnasium.Env, got CartPoleVectorEnv",
    ),
    "making it raises": (on_fire, "making it raised RuntimeError: the gearbox is on fire"),
    "making it leaves": (left, "making it raised SystemExit: not today"),
    "making it wants an argument": (wanting, "missing 1 required positional argument: 'size'"),
}

for _number, _name in enumerate(FAULTS):
    gymnasium.register(
        f"Altered{_number}-v0",
        entry_point=Altered,
        kwargs={"fault": _name},
        max_episode_steps=20,  # its wrapper is the first to stumble
    )
