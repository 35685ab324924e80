"""Checks that an environment follows gymnasium's API, and messages for those that do not.

Errors that every worker would meet, or that would be learned from silently, are rejected. Numbers
outside a space's bounds, or in another precision, are accepted.
"""

import contextlib
import copy
import difflib
import inspect
import math
import pathlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, SupportsFloat, TypeVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from hogwild_rl.envs import atari, codecs
from hogwild_rl.envs.codecs import ActionCodec, one_line
from hogwild_rl.errors import UserError

# What pip brings that an environment needs, by a word in its id or entry point.
_ATARI = "ale-py opencv-python-headless"
_NEEDS = {
    "box2d": '"gymnasium[box2d]"',
    "mujoco": '"gymnasium[mujoco]"',
    "ale/": _ATARI,
    "ale_py": _ATARI,
    "noframeskip": _ATARI,
}

_LONGEST = 300  # characters of what others printed


def cannot_make(name: str, error: BaseException) -> str:
    """Why an environment cannot be made, and what to do about it, in one line.

    Args:
        name: its id.
        error: what finding or making it raised.
    """
    registered = gymnasium.registry.get(name)
    missing = isinstance(error, gymnasium.error.DependencyNotInstalled | ImportError)
    if missing and ":" in name:
        return f"environment {name}: cannot import {name.partition(':')[0]} ({error})"
    if not isinstance(error, gymnasium.error.Error | ImportError):
        module = name.rpartition(":")[0]
        return f"environment {name}: importing {module} raised {describe_exception(error)}"
    hint = f"{name} {registered.entry_point if registered else ''}".lower()
    packages = next((packages for word, packages in _NEEDS.items() if word in hint), None)
    if packages and (missing or (packages == _ATARI and not atari.installed())):
        return f"environment {name} needs an extra: {sys.executable} -m pip install {packages}"
    if missing:
        return f"environment {name} needs a package that is not installed: {error}"
    matches = difflib.get_close_matches(
        name.rpartition(":")[2], gymnasium.registry, n=3, cutoff=0.5
    )
    near = f"; did you mean {' or '.join(matches)}?" if matches else ""
    return f"unknown environment {name!r}{near or ': give a registered id or module:Id'}"


def describe_exception(error: BaseException) -> str:
    """An exception and where it was raised, in one line."""
    text = abbreviate(f"{type(error).__name__}: {error}").removesuffix(":")
    ours = str(pathlib.Path(__file__).parents[1])
    frames = [f for f in traceback.extract_tb(error.__traceback__) if ours not in f.filename]
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return text + where


def abbreviate(value: Any) -> str:
    """A space or an observation as printed, on one line that is not too long."""
    if isinstance(value, spaces.Box):
        return f"a Box of {list(value.shape)} {value.dtype}"
    text = one_line(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def describe_type(value: Any) -> str:
    """What something is, for messages."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, np.ndarray):
        return f"an array of {list(value.shape)} {value.dtype}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    name = type(value).__name__
    if type(value).__module__ not in ("builtins", "numpy"):
        return f"{type(value).__module__}.{name}"
    plain = isinstance(value, str | bool | int | float | np.generic)
    return (
        f"{name} {abbreviate(repr(value) if isinstance(value, str) else value)}" if plain else name
    )


Env = gymnasium.Env[Any, Any]
_T = TypeVar("_T")

_STEPS, _STEPS_S = 10, 0.005  # steps that are tried: at most so many, one at least, for so long
_RESET = "def reset(self, *, seed=None, options=None)"
_STEP = "observation, reward, terminated, truncated, info"


class _BrokenError(Exception):
    """The contract is broken; the message says where."""


class _RaisedError(_BrokenError):
    """The environment's own code raised."""


def check(env: Env, name: str, played: bool = True) -> None:
    """Looks at the spaces and plays a few random steps, which leave the environment anywhere.

    Args:
        env: just made.
        name: for messages.
        played: False where its steps need not be tried.

    Raises:
        UserError: the contract is broken, a space is not supported, or the environment raised; the
            message says where and what is wanted.
    """
    try:
        _check_spaces(env)
        if played:
            _check_played(env)
    except (_BrokenError, UserError) as error:
        raise UserError(f"environment {name}: {error}") from error.__cause__


def is_tested_upstream(source: Any) -> bool:
    """Whether gymnasium or ale-py test it, whose environments can take long to begin."""
    if not isinstance(source, EnvSpec) or source.additional_wrappers:
        return False
    return str(source.entry_point).startswith(("gymnasium.envs.", "ale_py"))


def called(name: str, what: str, function: Callable[[], _T]) -> _T:
    """What a caller's function gives.

    Args:
        name: of the environment, for messages.
        what: is done, for messages.
        function: takes nothing.

    Raises:
        UserError: it raised; the message says what and where, in one line.
    """
    try:
        return _called(what, function)
    except _RaisedError as error:
        raise UserError(f"environment {name}: {error}") from error.__cause__


def _called(what: str, function: Callable[[], _T]) -> _T:
    try:
        return function()
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # it is the caller's code
        raise _RaisedError(f"{what} raised {describe_exception(error)}") from error


def _check_spaces(env: Env) -> None:
    found: dict[str, spaces.Space[Any]] = {}
    for attribute in ("observation_space", "action_space"):
        space = _called(attribute, lambda each=attribute: getattr(env, each, None))  # type: ignore[misc]
        if not isinstance(space, spaces.Space):
            got = describe_type(space)
            raise _BrokenError(f"{attribute} is {got}: set it in __init__ to a gymnasium space")
        for part in codecs.leaves(space):
            if isinstance(part, spaces.Box) and (part.low > part.high).any():
                short = abbreviate(part)
                raise _BrokenError(f"{attribute} {short} has a low above its high: exchange them")
        found[attribute] = space
    seen = codecs.ObservationCodec.of(found["observation_space"]).shape
    chosen = ActionCodec.of(found["action_space"]).shape
    for (attribute, space), shape in zip(found.items(), (seen, chosen), strict=True):
        if not math.prod(shape):
            raise _BrokenError(
                f"{attribute} {abbreviate(space)} is empty: give it a number at least"
            )


def _check_played(env: Env) -> None:
    for layer in _layers(env):
        _check_signature(layer)
    try:
        _play(env)
    except _RaisedError:
        # A wrapper may have stumbled over what lies below it: say that rather, if it is broken.
        inner = env.unwrapped
        if inner is not env:
            with contextlib.suppress(_RaisedError):
                _pair(_called("reset()", lambda: inner.reset(seed=0, options=None)))
                _five(_called("step()", lambda: inner.step(_actions(inner).sample())))
        raise


def _play(env: Env) -> None:
    """An episode's beginning, a few random steps, and a beginning once more."""
    space, actions = env.observation_space, _actions(env)
    # As vector environments call it.
    seen = _pair(_called("reset()", lambda: env.reset(seed=0, options=None)))
    _check_observation(space, seen, "reset()", finite=True)
    began_s = time.perf_counter()
    for _ in range(_STEPS):
        action = actions.sample()
        given = _five(_called("step()", lambda: env.step(action)))  # noqa: B023  called at once
        _check_observation(space, given[0], "step()")
        _check_outcome(*given[1:])
        if given[2] or given[3] or time.perf_counter() - began_s > _STEPS_S:
            break
    seen = _pair(_called("reset()", env.reset))
    _check_observation(space, seen, "a second reset()", finite=True)


def _layers(env: Env) -> Iterator[Env]:
    """An environment, and those that it is wrapped around."""
    yield env
    while isinstance(env, gymnasium.Wrapper):
        env = env.env
        yield env


def _check_signature(env: Env) -> None:
    try:
        signature = inspect.signature(env.reset)
    except (TypeError, ValueError):  # not written in Python: calling it will tell
        return
    try:
        signature.bind(seed=0, options=None)
    except TypeError as error:
        kind = type(env).__name__
        raise _BrokenError(
            f"reset() of {kind} does not take seed and options: write {_RESET}"
        ) from error


def _actions(env: Env) -> spaces.Space[Any]:
    """The action space with a seed of its own, which leaves the environment's alone."""
    actions = copy.deepcopy(env.action_space)
    actions.seed(0)
    return actions


def _pair(given: Any) -> Any:
    """The observation out of what reset gave."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise _BrokenError(f"reset() must return (observation, info), got {describe_type(given)}")
    if not isinstance(given[1], dict):
        raise _BrokenError(f"info of reset() must be a dict, got {describe_type(given[1])}")
    return given[0]


def _five(given: Any) -> Any:
    """What step gave, if it is of five parts."""
    if isinstance(given, tuple | list) and len(given) == 5:
        return given
    old = isinstance(given, tuple) and len(given) == 4
    hint = ": done of the old gym is terminated and truncated now" if old else ""
    raise _BrokenError(f"step() must return ({_STEP}), got {describe_type(given)}{hint}")


def _check_outcome(reward: Any, terminated: Any, truncated: Any, info: Any) -> None:
    number = isinstance(reward, SupportsFloat) and not isinstance(reward, str)
    if not number or np.ndim(reward):
        raise _BrokenError(f"step() must give a number as reward, got {describe_type(reward)}")
    for flag, value in (("terminated", terminated), ("truncated", truncated)):
        # 0 and 1 count as bools, as they do for gymnasium's vector environments.
        if np.ndim(value) or np.asarray(value).dtype.kind not in "biuf" or value not in (0, 1):
            raise _BrokenError(f"step() must give a bool as {flag}, got {describe_type(value)}")
    if not isinstance(info, dict):
        raise _BrokenError(f"step() must give a dict as info, got {describe_type(info)}")


def _check_observation(
    space: spaces.Space[Any],
    given: Any,
    source: str,
    part: str = "observation",
    finite: bool = False,
) -> None:
    """Raises unless an observation has its space's structure and shape, and a dtype that fits.

    Args:
        space: of the observation, or of a part of it.
        given: the observation, or that part.
        source: what gave it.
        part: which.
        finite: whether numbers that are not finite are refused.
    """

    def refuse(got: str) -> NoReturn:
        wanted = abbreviate(space)
        raise _BrokenError(f"{source} gave {got} as {part}, its space wants {wanted}")

    if isinstance(space, spaces.Dict):
        if not isinstance(given, dict):
            refuse(describe_type(given))
        if given.keys() != space.spaces.keys():
            refuse(f"a dict of {abbreviate(sorted(map(str, given)))}")
        for key, inner in space.spaces.items():
            _check_observation(inner, given[key], source, f"{part}[{key!r}]", finite)
    elif isinstance(space, spaces.Tuple):
        if not isinstance(given, tuple | list) or len(given) != len(space.spaces):
            refuse(describe_type(given))
        for index, (inner, value) in enumerate(zip(space.spaces, given, strict=True)):
            _check_observation(inner, value, source, f"{part}[{index}]", finite)
    else:
        plain = space.shape == () and isinstance(given, int | float)
        if not (plain or isinstance(given, np.ndarray | np.generic)):
            refuse(describe_type(given))
        array, dtype = np.asarray(given), space.dtype or np.float32
        if array.shape != space.shape or not np.can_cast(array.dtype, dtype, "same_kind"):
            refuse(describe_type(given))
        if finite and array.dtype.kind == "f" and not np.isfinite(array).all():
            refuse("numbers that are not finite")
        choices = isinstance(space, spaces.Discrete | spaces.MultiDiscrete)
        if choices and not space.contains(array.astype(dtype)):
            refuse(abbreviate(given))
