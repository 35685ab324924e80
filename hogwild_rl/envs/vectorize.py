"""Vector environments: native, sync, async or EnvPool, all with NEXT_STEP autoreset.

The step after an episode end ignores its action, has reward 0 and returns the reset observation.
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
from hogwild_rl.envs.env_process import EnvironmentFailedError
from hogwild_rl.envs.make import Array, EnvSource, make_env, spec
from hogwild_rl.errors import UserError

# From how many environments on gymnasium's native vector environment beats single ones stepped in
# turn: on CartPole-v1 33 µs a step for any small number, against 7 µs for each.
NATIVE_FROM = 5


@runtime_checkable
class AsyncVectorEnv(Protocol):
    """Vector environments that step while the caller does something else."""

    def step_async(self, actions: Array) -> None:
        """Starts a step."""

    def step_wait(self) -> tuple[Any, ...]:
        """Waits for its outcome."""


def make_vector_env(env: EnvSource, num_envs: int) -> VectorEnv[Any, Any, Any]:
    """`num_envs` environments stepped as one: in their own vector form where faster, else in turn.

    Args:
        env: id, spec or callable.
        num_envs: B ≥ 1.

    Raises:
        UserError: the environment cannot be made.
    """
    made = native(env, num_envs) if prefer_native(env, num_envs) else None
    return sync_vector_env(env, num_envs) if made is None else made


def prefer_native(env: EnvSource, num_envs: int) -> bool:
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


def sync_vector_env(env: EnvSource, num_envs: int) -> VectorEnv[Any, Any, Any]:
    """Single environments, stepped one after another."""
    if isinstance(env, str):
        env = spec(env)
    source = env
    return SyncVectorEnv(
        [lambda: make_env(source)] * num_envs,
        copy=False,  # the rollout copies
        autoreset_mode=AutoresetMode.NEXT_STEP,
    )


def async_step(
    envs: VectorEnv[Any, Any, Any],
) -> tuple[Callable[[Array], None], Callable[[], tuple[Any, ...]]]:
    """A step's two halves: `send(actions)` and `receive()`, which waits for what `step` returns.

    Environments in processes or threads of their own step between the two, others in the second.
    """
    if isinstance(envs, AsyncVectorEnv):
        return envs.step_async, envs.step_wait
    sent: list[Array] = []
    return sent.append, lambda: envs.step(sent.pop())


def force_reset(envs: VectorEnv[Any, Any, Any], b: int) -> bool:
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
    source: make.EnvSource, vectorization: Vectorization, num_envs: int, cores: int
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
    if vectorization == "native" and not has_native(source):
        raise UserError(
            f"{make.name_of(source)} has no native vector environment with autoreset in the next "
            "step: leave it out, or use sync, async or envpool"
        )
    if vectorization == "envpool":
        _require_pool(source)
    if vectorization != "auto":
        return Backend(vectorization, "as asked for")
    if prefer_native(source, num_envs) and has_native(source):
        return Backend("native", "the environment has a vectorised form of its own")
    if num_envs > 1 and isinstance(source, EnvSpec) and envpool.installed() and envpool.has(source):
        return Backend("envpool", "it steps this environment in C++")
    return _timed(source, num_envs, cores)


def make_envs(
    source: make.EnvSource,
    backend: Backend,
    num_envs: int,
    cores: int,
    first: int = 0,
    failed: Callable[[EnvironmentFailedError], float] = subproc.raise_failure,
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
        source = make.spec(source)
    if backend.name == "native":
        envs = native(source, num_envs, cores)
        assert envs is not None, "chosen where there is one"
        return envs
    if backend.name == "envpool":
        assert isinstance(source, EnvSpec), "chosen for registered ones"
        return envpool.PoolVectorEnv(source, num_envs, threads=cores)
    if backend.name == "async":
        maker = functools.partial(make.make_env, source)
        return subproc.ProcessVectorEnv(maker, num_envs, first, failed, step_timeout_s)
    return sync_vector_env(source, num_envs)


def steps_asynchronously(source: make.EnvSource, backend: Backend) -> bool:
    """Whether environments step in threads or processes of their own while the caller goes on."""
    return backend.name in ("async", "envpool") or (
        backend.name == "native" and atari.is_game(source)
    )


def _require_pool(source: make.EnvSource) -> None:
    if not envpool.installed():
        raise UserError(f"envpool is not installed: {sys.executable} -m pip install envpool")
    spec = make.spec(source) if isinstance(source, str) else source
    if not (isinstance(spec, EnvSpec) and envpool.has(spec)):
        raise UserError(
            f"EnvPool has no {make.name_of(source)}: leave it out, or use sync or async"
        )


def _timed(source: make.EnvSource, num_envs: int, cores: int) -> Backend:
    """Processes where stepping in turn takes longer than handing the steps over."""
    if num_envs == 1 or cores == 1:
        return Backend("sync", "there is nothing to be shared out")
    step_s = _step_seconds(source)
    measured = f"a step takes {step_s * 1e6:,.0f} µs, handing it to a process about "
    measured += f"{_HANDOVER_S * 1e6:.0f}"
    pays = _HANDOVER_S + step_s / min(cores, num_envs) < step_s
    return Backend("async" if pays else "sync", measured)


def _step_seconds(source: make.EnvSource) -> float:
    """Mean time of a step with random actions, resets included."""
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
