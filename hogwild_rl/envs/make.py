"""Construction of environments from an id, a spec or a callable."""

import contextlib
import copy
import dataclasses
import functools
import importlib
import operator
import os
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box

from hogwild_rl.envs import atari, checks
from hogwild_rl.envs.codecs import leaves, one_line
from hogwild_rl.errors import UserError
from hogwild_rl.hogwild import pickling

Env: TypeAlias = gymnasium.Env[Any, Any]
EnvSource: TypeAlias = str | EnvSpec | Callable[..., Env]
Array: TypeAlias = np.ndarray[Any, Any]
Spaces: TypeAlias = tuple[gymnasium.Space[Any], gymnasium.Space[Any]]

_TRUSTED = ("gymnasium.envs.", "ale_py.")  # entry points


@dataclasses.dataclass(frozen=True)
class EnvInfo:
    """Properties of an environment that a run needs before it starts.

    Attributes:
        source: spec or callable; an id is resolved to its spec, so that environments registered by
            the caller's program can be made in every process.
        name: the id, or the callable's dotted name.
        reward_threshold: mean return at which the task counts as solved; None if not registered.
        frames_per_step: emulator frames per step; 1 without an emulator.
    """

    source: EnvSource
    name: str
    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    reward_threshold: float | None
    frames_per_step: int = 1


def inspect_env(env: EnvSource) -> EnvInfo:
    """Makes an environment, checks it with a few steps, closes it and returns its properties.

    Raises:
        UserError: the id is unknown, an extra is missing, a callable cannot be pickled, or the
            environment violates gymnasium's API.
    """
    name = name_of(env)
    source = resolve(env)
    require_picklable(f"env {name}", source)
    frames = atari.FRAMESKIP if atari.is_game(source) else 1
    # Training uses ale-py's vector environment, which needs no image library.
    if atari.is_game(source) and (games := atari.make_vector(source, 1, threads=1)) is not None:
        games.close()
        found = (games.single_observation_space, games.single_action_space)
        return EnvInfo(source, name, *found, source.reward_threshold, frames)
    with contextlib.ExitStack() as stack:
        stack.callback(os.chdir, os.getcwd())  # noqa: PTH109  environments may change it
        instance = checks.called(name, "making it", lambda: make_env(source))
        try:
            checks.check(instance, name, played=not checks.is_tested_upstream(source))
            found = (instance.observation_space, instance.action_space)
            threshold = getattr(instance.spec, "reward_threshold", None)
            env_info = EnvInfo(source, name, *found, threshold, frames)
        except UserError:
            with contextlib.suppress(Exception):  # report the first error
                instance.close()
            raise
        checks.called(name, "close()", instance.close)
        if not isinstance(source, EnvSpec):  # its instances may differ
            checks.called(name, "making another", lambda: make_env(source, like=found)).close()
    return env_info


def make_env(env: EnvSource, render_mode: str | None = None, like: Spaces | None = None) -> Env:
    """Makes one environment.

    Args:
        env: id, spec or callable.
        render_mode: as in `gymnasium.make`; passed only if not None.
        like: spaces of another instance, which replace those of this one: bounds may differ.

    Raises:
        UserError: the environment cannot be made, or differs from `like` in more than bounds; the
            message has the cause and the remedy.
    """
    # Callables that do not render need no such parameter.
    rendering: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    name_of(env)  # raises UserError for other types
    env = resolve(env)
    try:
        if isinstance(env, EnvSpec):
            if atari.is_game(env):
                return atari.make(env, **rendering)
            made = gymnasium.make(env, disable_env_checker=True, **rendering)
        else:
            made = env(**rendering)
    except (gymnasium.error.Error, ImportError) as error:
        missing = isinstance(error, gymnasium.error.DependencyNotInstalled | ImportError)
        if missing and isinstance(env, EnvSpec):
            raise UserError(checks.cannot_make(name_of(env), error)) from error
        reason = f"making it raised {checks.describe_exception(error)}"
        raise UserError(f"environment {name_of(env)}: {reason}") from error
    if not isinstance(made, gymnasium.Env):
        raise UserError(f"{name_of(env)} must return a gymnasium.Env, got {type(made).__name__}")
    if made.metadata is None:  # vector environments copy it
        made.metadata = {}
    if like is not None and like != (found := (made.observation_space, made.action_space)):
        if _without_bounds(like) != _without_bounds(found):
            raise UserError(
                f"environment {name_of(env)}: spaces differ between instances: {one_line(like)} "
                f"and {one_line(found)}: give all the same"
            )
        made = gymnasium.Wrapper(made)
        made.observation_space, made.action_space = like
    return made


def _without_bounds(spaces: Spaces) -> list[Any]:
    parts = [part for space in spaces for part in leaves(space)]
    return [(each.shape, each.dtype) if isinstance(each, Box) else each for each in parts]


def resolve(env: EnvSource) -> EnvSpec | Callable[..., Env]:
    """Spec or callable that makes an environment; a string is looked up.

    `module:Name` imports the module first. Name is an id that it registers, or its callable.

    Raises:
        UserError: the string is not an id, a callable's name or the JSON of a spec, or the module
            cannot be imported.
    """
    if isinstance(env, functools.partial) and env.func is gymnasium.make and len(env.args) == 1:
        spec, arguments = copy.deepcopy(resolve(env.args[0])), dict(env.keywords)
        assert isinstance(spec, EnvSpec), "gymnasium.make takes an id or a spec"
        for name in ("max_episode_steps", "disable_env_checker"):
            setattr(spec, name, arguments.pop(name, getattr(spec, name)))
        spec.kwargs |= arguments
        return spec
    if not isinstance(env, str):
        return env
    if env.startswith("{"):
        return _from_json(env)
    module, _, registered = env.rpartition(":")
    try:
        if module:
            if not all(part.isidentifier() for part in module.split(".")):
                raise gymnasium.error.NameNotFound(module)
            found = importlib.import_module(module)  # registers the id
            with contextlib.suppress(AttributeError):
                function: Callable[..., Env] = operator.attrgetter(registered)(found)
                return function
        elif registered not in gymnasium.registry:
            atari.register()
        return gymnasium.spec(registered)
    except (Exception, SystemExit) as error:  # arbitrary user code
        raise UserError(checks.cannot_make(env, error)) from error


def _from_json(text: str) -> EnvSpec:
    try:
        return EnvSpec.from_json(text)
    except Exception as error:  # a file can hold anything
        raise UserError(f"env {text} is not the JSON of a spec ({error}): give an id") from error


def name_of(source: str | EnvSpec | Callable[..., Any]) -> str:
    """Name of a setting that may be a function: a string, an id, or the function's dotted name."""
    if isinstance(source, str):
        return _from_json(source).id if source.startswith("{") else source
    if isinstance(source, EnvSpec):
        return source.id
    if not callable(source):
        given = checks.describe_type(source)
        raise UserError(f"env must be an id, a spec or a function that makes one, got {given}")
    if isinstance(source, functools.partial):
        if source.func is gymnasium.make and source.args:
            return name_of(source.args[0])
        source = source.func
    return f"{source.__module__}.{getattr(source, '__qualname__', type(source).__qualname__)}"


def to_setting(env: EnvSource) -> str:
    """String for settings from which `resolve` restores the source.

    A spec is JSON, with its arguments and wrappers. Callables that cannot be imported have their
    dotted name.
    """
    if isinstance(env, str):
        return env
    source = resolve(env)
    if isinstance(source, EnvSpec):
        with contextlib.suppress(ValueError):
            return source.to_json()
        return f"{source.id} with arguments that are not JSON"
    module, name = getattr(source, "__module__", ""), getattr(source, "__qualname__", "")
    with contextlib.suppress(AttributeError, KeyError):
        if module != "__main__" and operator.attrgetter(name)(sys.modules[module]) is source:
            return f"{module}:{name}"
    return name_of(source)


def found_from_shell(setting: str, source: EnvSource) -> bool:
    """True if another program can make the source from its setting."""
    if isinstance(source, EnvSpec) and source.id == setting:
        return str(source.entry_point).startswith(_TRUSTED)
    return ":" in setting


def modules_of(setting: str) -> set[str]:
    """Modules of users that making the environment of a setting imports; without importing any."""
    if not setting.startswith("{"):
        return {setting.rpartition(":")[0]} - {""}
    spec = _from_json(setting)
    points = [str(each.entry_point) for each in spec.additional_wrappers]
    known = gymnasium.registry.get(spec.id)
    own = [(each and each.entry_point, each and each.vector_entry_point) for each in (spec, known)]
    if own[0] != own[1] or not str(spec.entry_point).startswith(_TRUSTED):
        points += [str(spec.entry_point)]
    return {point.partition(":")[0] for point in points}


def require_picklable(what: str, value: Any) -> None:
    """Raises UserError if a value of user code, described by `what`, cannot be sent to workers."""
    try:
        pickling.dumps(value)
    except Exception as error:  # from arbitrary __reduce__ methods
        reason = checks.abbreviate(str(error))
        raise UserError(
            f"{what} cannot be sent to workers ({reason}): create such objects inside the function "
            "or class"
        ) from error
