"""Construction of environments from an id, a spec or a callable."""

import contextlib
import dataclasses
import functools
import importlib
import os
from collections.abc import Callable
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from hogwild_rl.envs import atari, checks
from hogwild_rl.errors import UserError
from hogwild_rl.hogwild import child

Env: TypeAlias = gymnasium.Env[Any, Any]
EnvSource: TypeAlias = str | EnvSpec | Callable[..., Env]
Array: TypeAlias = np.ndarray[Any, Any]


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
    source, name = spec(env) if isinstance(env, str) else env, name_of(env)
    _check_picklable(source)
    frames = atari.FRAMESKIP if atari.is_game(source) else 1
    # Training uses ale-py's vector environment, which needs no image library.
    if atari.is_game(source) and (games := atari.make_vector(source, 1, threads=1)) is not None:
        games.close()
        found = (games.single_observation_space, games.single_action_space)
        return EnvInfo(source, name, *found, source.reward_threshold, frames)
    folder = os.getcwd()  # noqa: PTH109
    instance = checks.called(name, "making it", lambda: make_env(source))
    try:
        checks.check(instance, name, played=not checks.is_tested_upstream(source))
        found = (instance.observation_space, instance.action_space)
        threshold = instance.spec.reward_threshold if instance.spec else None
        env_info = EnvInfo(source, name, *found, threshold, frames)
    except UserError:
        with contextlib.suppress(Exception):  # report the first error
            instance.close()
        raise
    checks.called(name, "close()", instance.close)
    os.chdir(folder)
    return env_info


def name_of(source: str | EnvSpec | Callable[..., Any]) -> str:
    """Name of a setting that may be a function: a string, an id, or the function's dotted name."""
    if isinstance(source, str):
        return source
    if isinstance(source, EnvSpec):
        return source.id
    if not callable(source):
        given = checks.describe_type(source)
        raise UserError(f"env must be an id, a spec or a function that makes one, got {given}")
    if isinstance(source, functools.partial):
        source = source.func
    return f"{source.__module__}.{getattr(source, '__qualname__', type(source).__qualname__)}"


def make_env(env: EnvSource, render_mode: str | None = None) -> Env:
    """Makes one environment.

    Args:
        env: id, spec or callable.
        render_mode: as in `gymnasium.make`; passed only if not None.

    Raises:
        UserError: the environment cannot be made; the message has the cause and the remedy.
    """
    # Callables that do not render need no such parameter.
    rendering: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    name_of(env)  # raises UserError for other types
    try:
        if isinstance(env, str):
            env = spec(env)
        if isinstance(env, EnvSpec):
            if atari.is_game(env):
                return atari.make(env, **rendering)
            return gymnasium.make(env, disable_env_checker=True, **rendering)
        made = env(**rendering)
    except (gymnasium.error.Error, ImportError) as error:
        missing = isinstance(error, gymnasium.error.DependencyNotInstalled | ImportError)
        if missing and isinstance(env, EnvSpec):
            raise UserError(checks.cannot_make(name_of(env), error)) from error
        reason = f"making it raised {checks.describe_exception(error)}"
        raise UserError(f"environment {name_of(env)}: {reason}") from error
    if not isinstance(made, gymnasium.Env):
        raise UserError(f"{name_of(env)} must return a gymnasium.Env, got {type(made).__name__}")
    return made


def spec(name: str) -> EnvSpec:
    """Spec registered under an id; `module:Id` imports the module first.

    Raises:
        UserError: the id is not registered, or the module cannot be imported.
    """
    module, _, registered = name.rpartition(":")
    try:
        if module:
            if not all(part.isidentifier() for part in module.split(".")):
                raise gymnasium.error.NameNotFound(module)
            importlib.import_module(module)  # registers the id
        elif registered not in gymnasium.registry:
            atari.register()
        return gymnasium.spec(registered)
    except (Exception, SystemExit) as error:  # arbitrary user code
        raise UserError(checks.cannot_make(name, error)) from error


def _check_picklable(env: EnvSource) -> None:
    try:
        child.dumps(env)
    except Exception as error:  # from arbitrary __reduce__ methods
        reason = checks.abbreviate(str(error))
        raise UserError(
            f"env {name_of(env)} cannot be sent to workers ({reason}): "
            "create such objects inside the function or class"
        ) from error
