"""Checks of environments against gymnasium's API, with error messages.

Rejected are errors that would occur in every worker or corrupt training silently. Accepted are
values outside a space's bounds or of another precision.
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

# pip packages that an environment needs, by a substring of its id or entry point.
_ATARI = "ale-py opencv-python-headless"
_NEEDS = {
    "box2d": '"gymnasium[box2d]"',
    "mujoco": '"gymnasium[mujoco]"',
    "ale/": _ATARI,
    "ale_py": _ATARI,
    "noframeskip": _ATARI,
}

_LONGEST = 300  # characters of external text in a message


def cannot_make(name: str, error: BaseException) -> str:
    """One-line message with the cause and the remedy for an environment that cannot be made."""
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
        return f"environment {name} needs packages: {sys.executable} -m pip install {packages}"
    if missing:
        return f"environment {name} needs a package that is not installed: {error}"
    matches = difflib.get_close_matches(
        name.rpartition(":")[2], gymnasium.registry, n=3, cutoff=0.5
    )
    near = f"; did you mean {' or '.join(matches)}?" if matches else ""
    return f"unknown environment {name!r}{near or ': pass a registered id or module:Id'}"


def describe_exception(error: BaseException) -> str:
    """One-line description of an exception and its origin."""
    text = abbreviate(f"{type(error).__name__}: {error}").removesuffix(":")
    ours = str(pathlib.Path(__file__).parents[1])
    frames = [f for f in traceback.extract_tb(error.__traceback__) if ours not in f.filename]
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return text + where


def abbreviate(value: Any) -> str:
    """One-line string of a space or an observation, at most about 300 characters."""
    if isinstance(value, spaces.Box):
        return f"a Box of {list(value.shape)} {value.dtype}"
    text = one_line(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def describe_type(value: Any) -> str:
    """Type and size or value of an object, for messages."""
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

_STEPS, _STEPS_S = 10, 0.005  # test steps: maximum number (at least 1) and duration
_RESET = "def reset(self, *, seed=None, options=None)"
_STEP = "observation, reward, terminated, truncated, info"


class _BrokenError(Exception):
    """Violation of gymnasium's API; the message names the method or space."""


class _RaisedError(_BrokenError):
    """Exception raised by the environment's own code."""


def check(env: Env, name: str, played: bool = True) -> None:
    """Checks the spaces and, if `played`, a few random steps; the environment must be reset then.

    Raises:
        UserError: the environment violates gymnasium's API or raises, or a space is not supported.
    """
    try:
        _check_spaces(env)
        if played:
            _check_played(env)
    except (_BrokenError, UserError) as error:
        raise UserError(f"environment {name}: {error}") from error.__cause__


def is_tested_upstream(source: Any) -> bool:
    """True for environments of gymnasium and ale-py, tested there; their resets can be slow."""
    if not isinstance(source, EnvSpec) or source.additional_wrappers:
        return False
    return str(source.entry_point).startswith(("gymnasium.envs.", "ale_py"))


def called(name: str, what: str, function: Callable[[], _T]) -> _T:
    """Calls a function of the user's code, described by `what`, and returns its result.

    Raises:
        UserError: the function raised; the message has the exception and its origin in one line.
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
    except (Exception, SystemExit) as error:  # arbitrary user code
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
                raise _BrokenError(f"{attribute} {short} has low > high: exchange the bounds")
        found[attribute] = space
    observed = codecs.ObservationCodec.of(found["observation_space"]).shape
    acted = ActionCodec.of(found["action_space"]).shape
    for (attribute, space), shape in zip(found.items(), (observed, acted), strict=True):
        if not math.prod(shape):
            raise _BrokenError(
                f"{attribute} {abbreviate(space)} is empty: it must have at least one element"
            )


def _check_played(env: Env) -> None:
    for layer in _layers(env):
        _check_signature(layer)
    try:
        _play(env)
    except _RaisedError:
        # The wrapped environment may be the cause: report its API violation if it has one.
        inner = env.unwrapped
        if inner is not env:
            with contextlib.suppress(_RaisedError):
                _check_reset(_called("reset()", lambda: inner.reset(seed=0, options=None)))
                _check_step(_called("step()", lambda: inner.step(_actions(inner).sample())))
        raise


def _play(env: Env) -> None:
    """Checks a reset, a few random steps, and a second reset."""
    space, actions = env.observation_space, _actions(env)
    # The arguments are those of vector environments.
    observation = _check_reset(_called("reset()", lambda: env.reset(seed=0, options=None)))
    _check_observation(space, observation, "reset()", finite=True)
    start_s = time.perf_counter()
    for _ in range(_STEPS):
        action = actions.sample()
        result = _check_step(_called("step()", lambda: env.step(action)))  # noqa: B023  called at once
        _check_observation(space, result[0], "step()")
        _check_outcome(*result[1:])
        if result[2] or result[3] or time.perf_counter() - start_s > _STEPS_S:
            break
    observation = _check_reset(_called("reset()", env.reset))
    _check_observation(space, observation, "a second reset()", finite=True)


def _layers(env: Env) -> Iterator[Env]:
    """Yields an environment and all environments that it wraps, outermost first."""
    yield env
    while isinstance(env, gymnasium.Wrapper):
        env = env.env
        yield env


def _check_signature(env: Env) -> None:
    try:
        signature = inspect.signature(env.reset)
    except (TypeError, ValueError):  # not written in Python: checked by the call
        return
    try:
        signature.bind(seed=0, options=None)
    except TypeError as error:
        name = type(env).__name__
        raise _BrokenError(
            f"reset() of {name} does not take seed and options: write {_RESET}"
        ) from error


def _actions(env: Env) -> spaces.Space[Any]:
    """Seeded copy of the action space: the environment's own generator is not advanced."""
    actions = copy.deepcopy(env.action_space)
    actions.seed(0)
    return actions


def _check_reset(result: Any) -> Any:
    """Returns the observation of a result of `reset`."""
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise _BrokenError(f"reset() must return (observation, info), got {describe_type(result)}")
    if not isinstance(result[1], dict):
        raise _BrokenError(f"info of reset() must be a dict, got {describe_type(result[1])}")
    return result[0]


def _check_step(result: Any) -> Any:
    """Returns a result of `step` if it has five elements."""
    if isinstance(result, tuple | list) and len(result) == 5:
        return result
    old = isinstance(result, tuple) and len(result) == 4
    hint = ": replace the old gym's done by terminated and truncated" if old else ""
    raise _BrokenError(f"step() must return ({_STEP}), got {describe_type(result)}{hint}")


def _check_outcome(reward: Any, terminated: Any, truncated: Any, info: Any) -> None:
    number = isinstance(reward, SupportsFloat) and not isinstance(reward, str)
    if not number or np.ndim(reward):
        raise _BrokenError(f"step() must return a number as reward, got {describe_type(reward)}")
    for flag, value in (("terminated", terminated), ("truncated", truncated)):
        # 0 and 1 count as bools, as in gymnasium's vector environments.
        if np.ndim(value) or np.asarray(value).dtype.kind not in "biuf" or value not in (0, 1):
            raise _BrokenError(f"step() must return a bool as {flag}, got {describe_type(value)}")
    if not isinstance(info, dict):
        raise _BrokenError(f"step() must return a dict as info, got {describe_type(info)}")


def _check_observation(
    space: spaces.Space[Any],
    given: Any,
    source: str,
    part: str = "observation",
    finite: bool = False,
) -> None:
    """Raises unless an observation, or a part of it, has its space's structure, shape and dtype.

    Messages name the `part` and its `source`, the method that returned it.
    """

    def refuse(got: str) -> NoReturn:
        wanted = abbreviate(space)
        raise _BrokenError(f"{source} returned {got} as {part}, its space is {wanted}")

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
            refuse("non-finite numbers")
        choices = isinstance(space, spaces.Discrete | spaces.MultiDiscrete)
        if choices and not space.contains(array.astype(dtype)):
            refuse(abbreviate(given))
