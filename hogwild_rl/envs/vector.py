"""Vector environments from an id, a spec or a callable, all with gymnasium's NEXT_STEP autoreset.

The step after an episode's end ignores its action, pays nothing and returns the reset observation.
"""

import contextlib
import dataclasses
import functools
import importlib
import pickle
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from hogwild_rl import UserError
from hogwild_rl.envs import atari, complaints, contract

Env: TypeAlias = gymnasium.Env[Any, Any]
EnvSource: TypeAlias = str | EnvSpec | Callable[..., Env]
Array: TypeAlias = np.ndarray[Any, Any]

# From how many environments on gymnasium's native vector environment beats single ones stepped in
# turn: on CartPole-v1 33 µs a step for any small number, against 7 µs for each.
NATIVE_FROM = 5


@runtime_checkable
class SteppingAlone(Protocol):
    """Vector environments that step while the caller does something else."""

    def step_async(self, actions: Array) -> None:
        """Starts a step."""

    def step_wait(self) -> tuple[Any, ...]:
        """Waits for its outcome."""


@dataclasses.dataclass(frozen=True)
class EnvFacts:
    """What a run must know of an environment before it starts.

    Attributes:
        source: what workers make it from; an id is resolved, so that an environment registered by
            the caller's program is known in every process.
        name: the id, or the callable's dotted name.
        reward_threshold: mean return at which it counts as solved, where one is registered.
        frames_per_step: how many frames of an emulator a step takes; 1 where there is none.
    """

    source: EnvSource
    name: str
    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    reward_threshold: float | None
    frames_per_step: int = 1


def inspect(env: EnvSource) -> EnvFacts:
    """Makes an environment once, tries a few steps of it, and notes its facts.

    Raises:
        UserError: the id is unknown, an extra is missing, a callable cannot be sent to a worker, or
            the environment breaks gymnasium's contract.
    """
    source, name = spec(env) if isinstance(env, str) else env, name_of(env)
    _check_picklable(source)
    # The vector form of a game needs no image library, and is what trains.
    if atari.is_game(source) and (games := atari.make_vector(source, 1, threads=1)) is not None:
        games.close()
        observed, acted = games.single_observation_space, games.single_action_space
        return EnvFacts(source, name, observed, acted, source.reward_threshold, atari.FRAMESKIP)
    instance = contract.called(name, "making it", lambda: make_env(source))
    try:
        contract.check(instance, name, played=not contract.tested_by_others(source))
        facts = EnvFacts(
            source=source,
            name=name,
            observation_space=instance.observation_space,
            action_space=instance.action_space,
            reward_threshold=instance.spec.reward_threshold if instance.spec else None,
            frames_per_step=atari.FRAMESKIP if atari.is_game(source) else 1,
        )
    except UserError:
        with contextlib.suppress(Exception):  # the first complaint is the one to be told
            instance.close()
        raise
    contract.called(name, "close()", instance.close)
    return facts


def name_of(env: EnvSource) -> str:
    """The id of an environment, or a callable's dotted name."""
    if isinstance(env, str):
        return env
    if isinstance(env, EnvSpec):
        return env.id
    if isinstance(env, functools.partial):
        env = env.func
    return f"{env.__module__}.{getattr(env, '__qualname__', type(env).__qualname__)}"


def make_env(env: EnvSource, render_mode: str | None = None) -> Env:
    """One environment.

    Args:
        env: id, spec or callable.
        render_mode: as gymnasium's; passed on only where it is set.

    Raises:
        UserError: it cannot be made; the message says why and what to do.
    """
    # Environments without rendering need not take the argument.
    rendering: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    try:
        if isinstance(env, str):
            env = spec(env)
        if isinstance(env, EnvSpec):
            if atari.is_game(env):
                return atari.make(env, **rendering)
            return gymnasium.make(env, disable_env_checker=True, **rendering)
        made = env(**rendering)
    except (gymnasium.error.Error, ImportError) as error:
        raise UserError(complaints.unusable(name_of(env), error)) from error
    if not isinstance(made, gymnasium.Env):
        raise UserError(f"{name_of(env)} must return a gymnasium.Env, got {type(made).__name__}")
    return made


def make_vector_env(env: EnvSource, num_envs: int) -> VectorEnv[Any, Any, Any]:
    """`num_envs` environments stepped as one: in their own vector form where faster, else in turn.

    Args:
        env: id, spec or callable.
        num_envs: B ≥ 1.

    Raises:
        UserError: the environment cannot be made.
    """
    made = native(env, num_envs) if native_pays(env, num_envs) else None
    return in_turn(env, num_envs) if made is None else made


def native_pays(env: EnvSource, num_envs: int) -> bool:
    """Whether a vector form of its own, should there be one, beats single ones in turn."""
    return num_envs >= NATIVE_FROM or atari.is_game(spec(env) if isinstance(env, str) else env)


def native(env: EnvSource, num_envs: int, threads: int = 1) -> VectorEnv[Any, Any, Any] | None:
    """An environment's own vector form, gymnasium's or ale-py's; None where none fits here.

    Args:
        env: id, spec or callable.
        num_envs: B ≥ 1.
        threads: that may step it; gymnasium's own take one.
    """
    if isinstance(env, str):
        env = spec(env)
    if atari.is_game(env):
        return atari.make_vector(env, num_envs, threads)
    if not isinstance(env, EnvSpec) or env.vector_entry_point is None or env.additional_wrappers:
        return None
    if atari.from_ale(env):  # its vector form would show it otherwise than a single one
        return None
    made = gymnasium.make_vec(env, num_envs, vectorization_mode="vector_entry_point")
    if made.metadata.get("autoreset_mode") == AutoresetMode.NEXT_STEP:
        return made
    made.close()
    return None


def has_native(env: EnvSource) -> bool:
    """Whether `native` gives one."""
    made = native(env, 1)
    if made is not None:
        made.close()
    return made is not None


def in_turn(env: EnvSource, num_envs: int) -> VectorEnv[Any, Any, Any]:
    """Single environments, stepped one after another."""
    if isinstance(env, str):
        env = spec(env)
    source = env
    return SyncVectorEnv(
        [lambda: make_env(source)] * num_envs,
        copy=False,  # the rollout copies
        autoreset_mode=AutoresetMode.NEXT_STEP,
    )


def halves(
    envs: VectorEnv[Any, Any, Any],
) -> tuple[Callable[[Array], None], Callable[[], tuple[Any, ...]]]:
    """A step's two halves: `send(actions)` and `receive()`, which waits for what `step` returns.

    Environments in processes or threads of their own step between the two, others in the second.
    """
    if isinstance(envs, SteppingAlone):
        return envs.step_async, envs.step_wait
    sent: list[Array] = []
    return sent.append, lambda: envs.step(sent.pop())


def reset_next(envs: VectorEnv[Any, Any, Any], b: int) -> bool:
    """Has one environment begin anew with the next step, as if its episode had ended.

    Returns:
        Whether that could be arranged: gymnasium has no public way to ask for it.
    """
    for flags in ("_autoreset_envs", "prev_done"):  # of SyncVectorEnv and of native ones
        resetting = getattr(envs, flags, None)
        if isinstance(resetting, np.ndarray):
            resetting[b] = True
            return True
    return False


def spec(name: str) -> EnvSpec:
    """What is registered under an id; `module:Id` imports the module first.

    Raises:
        UserError: nothing is.
    """
    module, _, registered = name.rpartition(":")
    try:
        if module:
            if not all(part.isidentifier() for part in module.split(".")):
                raise gymnasium.error.NameNotFound(module)
            importlib.import_module(module)  # it registers the id
        elif registered not in gymnasium.registry:
            atari.register()
        return gymnasium.spec(registered)
    except (Exception, SystemExit) as error:  # whatever the module does
        raise UserError(complaints.unusable(name, error)) from error


def _check_picklable(env: EnvSource) -> None:
    try:
        pickle.dumps(env)
    except Exception as error:  # whatever its parts raise
        raise UserError(
            f"env {name_of(env)} cannot be sent to workers ({error}): "
            "give an id or a function at the top level of a module"
        ) from error
