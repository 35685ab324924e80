"""Vector environments: native, sync, async or EnvPool, all with NEXT_STEP autoreset.

The step after an episode's end ignores its action, has reward 0 and returns the reset observation.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from hogwild_rl.envs import atari, envpool, make, subproc
from hogwild_rl.envs.env_process import EnvironmentFailedError, used_info
from hogwild_rl.envs.make import Array, EnvSource, make_env, resolve
from hogwild_rl.errors import UserError
from hogwild_rl.hogwild import processes

# Smallest B at which gymnasium's native vector environment is faster than SyncVectorEnv: measured
# on CartPole-v1, 33 µs per step for any small B, against 7 µs per environment.
NATIVE_FROM = 5


@runtime_checkable
class AsyncVectorEnv(Protocol):
    """Vector environment that steps concurrently with the caller."""

    def step_async(self, actions: Array) -> None:
        """Starts a step."""

    def step_wait(self) -> tuple[Any, ...]:
        """Waits for the step and returns its outcome."""


def prefer_native(env: EnvSource, num_envs: int) -> bool:
    """True if a native vector environment, where available, is faster than SyncVectorEnv."""
    return num_envs >= NATIVE_FROM or atari.is_game(resolve(env))


def native(env: EnvSource, num_envs: int, threads: int = 1) -> VectorEnv[Any, Any, Any] | None:
    """Native vector environment (gymnasium, ale-py) with NEXT_STEP autoreset; None if unavailable.

    ale-py uses at most `threads` threads, gymnasium's native environments one.
    """
    env = resolve(env)
    if atari.is_game(env):
        return atari.make_vector(env, num_envs, threads)
    if not isinstance(env, EnvSpec) or env.vector_entry_point is None or env.additional_wrappers:
        return None
    if atari.from_ale(env):  # the vector form returns other observations than a single environment
        return None
    made = gymnasium.make_vec(env, num_envs, vectorization_mode="vector_entry_point")
    if made.metadata.get("autoreset_mode") == AutoresetMode.NEXT_STEP:
        return made
    made.close()
    return None


def has_native(env: EnvSource) -> bool:
    """True if `native` returns a vector environment."""
    made = native(env, 1)
    if made is not None:
        made.close()
    return made is not None


def sync_vector_env(
    env: EnvSource, num_envs: int, like: make.Spaces | None = None
) -> VectorEnv[Any, Any, Any]:
    """SyncVectorEnv: `num_envs` environments stepped sequentially; `like` as in `make_env`."""
    source = resolve(env)
    return _SyncVectorEnv(
        [lambda: make_env(source, like=like)] * num_envs,
        copy=False,  # the rollout buffer copies
        autoreset_mode=AutoresetMode.NEXT_STEP,
    )


class _SyncVectorEnv(SyncVectorEnv):
    """SyncVectorEnv that merges only the entries of infos that are used."""

    def _add_info(self, vector_infos: Any, env_info: Any, env_num: int) -> Any:
        return super()._add_info(vector_infos, used_info(env_info), env_num)


def force_reset(envs: VectorEnv[Any, Any, Any], b: int) -> bool:
    """Makes environment b reset in its next step, as after an episode's end.

    Returns:
        True if supported: gymnasium has no public API for this, so its private flags are set.
    """
    for flags in ("_autoreset_envs", "prev_done"):  # SyncVectorEnv, native environments
        resetting = getattr(envs, flags, None)
        if isinstance(resetting, np.ndarray):
            resetting[b] = True
            return True
    return False


Vectorization: TypeAlias = Literal["auto", "native", "sync", "async", "envpool"]

# Overhead of a step in another process: sending the action, receiving the outcome.
_HANDOVER_S = 50e-6
_TIMED_FOR_S = 0.05


@dataclasses.dataclass(frozen=True)
class Backend:
    """Vectorization backend and the reason for its choice."""

    name: Literal["native", "sync", "async", "envpool"]
    reason: str


def choose(
    source: make.EnvSource, vectorization: Vectorization, num_envs: int, cores: int
) -> Backend:
    """Chooses the requested backend, or for "auto" the fastest that the environment supports.

    Raises:
        UserError: the environment does not support the requested backend.
    """
    if vectorization == "native" and not has_native(source):
        raise UserError(
            f"{make.name_of(source)} has no native vector environment with NEXT_STEP autoreset: "
            "set vectorization to auto, sync, async or envpool"
        )
    if vectorization == "envpool":
        _require_pool(source)
    if vectorization != "auto":
        return Backend(vectorization, "as requested")
    if prefer_native(source, num_envs) and has_native(source):
        return Backend("native", "the environment has a native vector environment")
    if num_envs > 1 and isinstance(source, EnvSpec) and envpool.installed() and envpool.has(source):
        return Backend("envpool", "EnvPool steps this environment in C++")
    return _timed(source, num_envs, cores)


def make_envs(
    source: make.EnvSource,
    backend: Backend,
    num_envs: int,
    cores: int,
    first: int = 0,
    failed: Callable[[EnvironmentFailedError], float] = subproc.raise_failure,
    step_timeout_s: float = 60.0,
    like: make.Spaces | None = None,
) -> VectorEnv[Any, Any, Any]:
    """Makes a vector environment of a backend that `choose` returned, with NEXT_STEP autoreset.

    `first`, `failed` and `step_timeout_s` are used by the async backend, see `ProcessVectorEnv`;
    `like` by sync and async, see `make_env`.

    Raises:
        UserError: the environments cannot be made.
    """
    source = resolve(source)
    if backend.name == "native":
        envs = native(source, num_envs, cores)
        assert envs is not None, "`choose` checks has_native"
        return envs
    if backend.name == "envpool":
        assert isinstance(source, EnvSpec), "`choose` selects envpool for registered ids"
        return envpool.PoolVectorEnv(source, num_envs, threads=cores)
    if backend.name == "async":
        maker = functools.partial(make.make_env, source, like=like)
        return subproc.ProcessVectorEnv(maker, num_envs, first, failed, step_timeout_s)
    return sync_vector_env(source, num_envs, like)


def steps_asynchronously(source: make.EnvSource, backend: Backend) -> bool:
    """True if the environments step in other threads or processes than the caller."""
    return backend.name in ("async", "envpool") or (
        backend.name == "native" and atari.is_game(source)
    )


def _require_pool(source: make.EnvSource) -> None:
    if not envpool.installed():
        raise UserError(f"envpool is not installed: {sys.executable} -m pip install envpool")
    spec = resolve(source)
    if not (isinstance(spec, EnvSpec) and envpool.has(spec)):
        raise UserError(
            f"EnvPool has no {make.name_of(source)}: set vectorization to auto, sync or async"
        )


def _timed(source: make.EnvSource, num_envs: int, cores: int) -> Backend:
    """The async backend if its overhead is smaller than the time that it saves, else sync."""
    if num_envs == 1 or cores == 1:
        return Backend("sync", "only one environment or core")
    with processes.seeded_globally(0):
        step_s = _step_seconds(source)
    measured = f"a step takes {step_s * 1e6:,.0f} µs, async overhead about {_HANDOVER_S * 1e6:.0f}"
    faster = _HANDOVER_S + step_s / min(cores, num_envs) < step_s
    return Backend("async" if faster else "sync", measured)


def _step_seconds(source: make.EnvSource) -> float:
    """Mean seconds per step with random actions, including resets."""
    env: gymnasium.Env[Any, Any] = make.make_env(source)
    env.reset(seed=0)
    env.action_space.seed(0)
    start_s, steps = time.perf_counter(), 0
    while time.perf_counter() - start_s < _TIMED_FOR_S:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()
        steps += 1
    seconds = time.perf_counter() - start_s
    env.close()
    return seconds / steps
