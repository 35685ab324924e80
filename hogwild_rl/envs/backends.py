"""Which machinery steps many environments at once: native, sync, async or envpool."""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from hogwild_rl import UserError
from hogwild_rl.envs import atari, pool, processes, vector
from hogwild_rl.envs.host import EnvironmentFailedError

Vectorization: TypeAlias = Literal["auto", "native", "sync", "async", "envpool"]

# What it costs to hand one step to a process and take its outcome back.
_HANDOVER_S = 50e-6
_TIMED_FOR_S = 0.05


@dataclasses.dataclass(frozen=True)
class Backend:
    """A way of stepping environments, and why it was chosen."""

    name: Literal["native", "sync", "async", "envpool"]
    reason: str


def choose(
    source: vector.EnvSource, vectorization: Vectorization, num_envs: int, cores: int
) -> Backend:
    """What was asked for, if the environment has it; for "auto" the fastest that it has.

    Args:
        source: of the environments.
        vectorization: asked for.
        num_envs: that step together, at least 1.
        cores: that may be used.

    Raises:
        UserError: the environment does not have what was asked for.
    """
    if vectorization == "native" and not vector.has_native(source):
        raise UserError(
            f"{vector.name_of(source)} has no native vector environment with autoreset in the next "
            "step: leave it out, or use sync, async or envpool"
        )
    if vectorization == "envpool":
        _require_pool(source)
    if vectorization != "auto":
        return Backend(vectorization, "as asked for")
    if vector.native_pays(source, num_envs) and vector.has_native(source):
        return Backend("native", "the environment has a vectorised form of its own")
    if num_envs > 1 and isinstance(source, EnvSpec) and pool.installed() and pool.has(source):
        return Backend("envpool", "it steps this environment in C++")
    return _timed(source, num_envs, cores)


def make(
    source: vector.EnvSource,
    backend: Backend,
    num_envs: int,
    cores: int,
    first: int = 0,
    failed: Callable[[EnvironmentFailedError], float] = processes.give_up,
    step_timeout_s: float = 60.0,
) -> VectorEnv[Any, Any, Any]:
    """`num_envs` environments stepped as one, with NEXT_STEP autoreset.

    Args:
        source: id, spec or callable.
        backend: chosen for it.
        num_envs: B ≥ 1.
        cores: that may be used.
        first, failed, step_timeout_s: as in `ProcessVectorEnv`; only environments in processes of
            their own can be replaced.

    Raises:
        UserError: they cannot be made.
    """
    if isinstance(source, str):
        source = vector.spec(source)
    if backend.name == "native":
        native = vector.native(source, num_envs, cores)
        assert native is not None, "chosen where there is one"
        return native
    if backend.name == "envpool":
        assert isinstance(source, EnvSpec), "chosen for registered ones"
        return pool.PoolVectorEnv(source, num_envs, threads=cores)
    if backend.name == "async":
        maker = functools.partial(vector.make_env, source)
        return processes.ProcessVectorEnv(maker, num_envs, first, failed, step_timeout_s)
    return vector.in_turn(source, num_envs)


def steps_alone(source: vector.EnvSource, backend: Backend) -> bool:
    """Whether environments step in threads or processes of their own while the caller goes on."""
    return backend.name in ("async", "envpool") or (
        backend.name == "native" and atari.is_game(source)
    )


def _require_pool(source: vector.EnvSource) -> None:
    if not pool.installed():
        raise UserError(f"envpool is not installed: {sys.executable} -m pip install envpool")
    spec = vector.spec(source) if isinstance(source, str) else source
    if not (isinstance(spec, EnvSpec) and pool.has(spec)):
        raise UserError(
            f"EnvPool has no {vector.name_of(source)}: leave it out, or use sync or async"
        )


def _timed(source: vector.EnvSource, num_envs: int, cores: int) -> Backend:
    """Processes where stepping in turn takes longer than handing the steps over."""
    if num_envs == 1 or cores == 1:
        return Backend("sync", "there is nothing to be shared out")
    step_s = _step_seconds(source)
    measured = f"a step takes {step_s * 1e6:,.0f} µs, handing it to a process about "
    measured += f"{_HANDOVER_S * 1e6:.0f}"
    pays = _HANDOVER_S + step_s / min(cores, num_envs) < step_s
    return Backend("async" if pays else "sync", measured)


def _step_seconds(source: vector.EnvSource) -> float:
    """Mean time of a step with random actions, resets included."""
    env: gymnasium.Env[Any, Any] = vector.make_env(source)
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
