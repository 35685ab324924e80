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
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, create_empty_array

from hogwild_rl.envs import atari, envpool, make, subproc
from hogwild_rl.envs.env_process import (
    EnvironmentFailedError,
    used_info,
    write_observation,
)
from hogwild_rl.envs.make import Array, EnvSource, make_env, resolve
from hogwild_rl.errors import UserError
from hogwild_rl.hogwild import processes

# Smallest B at which gymnasium's native vector environment is faster than steps in turn: measured
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
    """True if a native vector environment, where available, is faster than stepping in turn."""
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


class SequentialVectorEnv(VectorEnv[Any, Any, Any]):
    """Vector environment that steps its environments in turn, with NEXT_STEP autoreset.

    Its episodes equal those of gymnasium's SyncVectorEnv, step by step. `step_into` has no overhead
    but a loop. An info has only the entries that training uses.

    Args:
        make_one, num_envs: function that makes one environment, and their number B ≥ 1.

    Attributes:
        envs: the environments.
        resetting: [B] bool, environments that their next step only resets.
    """

    def __init__(self, make_one: Callable[[], make.Env], num_envs: int) -> None:
        self.envs: list[make.Env] = []  # those made are closed if another one cannot be
        for _ in range(num_envs):
            self.envs.append(make_one())
        first, self.num_envs = self.envs[0], num_envs
        self.metadata = {**first.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = first.observation_space
        self.single_action_space = first.action_space
        self.observation_space = batch_space(first.observation_space, num_envs)
        self.action_space = batch_space(first.action_space, num_envs)
        self.resetting = [False] * num_envs
        self._observations = create_empty_array(first.observation_space, num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Resets with seeds `seed`, `seed` + 1, ...; the next step overwrites the observations."""
        infos: dict[str, Any] = {}
        for b, env in enumerate(self.envs):
            own_seed = None if seed is None else seed + b
            observation, info = env.reset(seed=own_seed, options=options)
            write_observation(self._observations, b, observation)
            self._add(infos, b, info)
        self.resetting = [False] * self.num_envs
        return self._observations, infos

    def step(self, actions: Array) -> tuple[Any, Array, Array, Array, dict[str, Any]]:
        """Steps all environments; the next step overwrites the observations."""
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros((2, self.num_envs), bool)
        row = (self._observations, rewards, terminated, truncated)
        return *row, self.step_into(*row, actions)

    def step_into(
        self, observations: Any, rewards: Array, terminated: Array, truncated: Array, actions: Array
    ) -> dict[str, Any]:
        """Steps all environments, writes the outcomes into the given rows, returns the infos.

        Args:
            observations: batch of the observation space, or one array [B, *O].
            rewards, terminated, truncated: [B].
            actions: [B, *A].
        """
        infos: dict[str, Any] = {}
        resetting = self.resetting
        write: Any = functools.partial(write_observation, observations)
        if isinstance(observations, np.ndarray):
            write = observations.__setitem__
        for b, env in enumerate(self.envs):
            if resetting[b]:
                observation, info = env.reset()
                rewards[b], terminated[b], truncated[b], resetting[b] = 0.0, False, False, False
            else:
                observation, rewards[b], terminal, limit, info = env.step(actions[b])
                terminated[b], truncated[b], resetting[b] = terminal, limit, bool(terminal or limit)
            write(b, observation)
            if "lives" in info:
                self._add(infos, b, info)
        return infos

    def _add(self, infos: dict[str, Any], b: int, info: dict[str, Any]) -> None:
        for name, value in used_info(info).items():
            infos.setdefault(name, np.zeros(self.num_envs, np.int64))[b] = value

    def close_extras(self, **kwargs: Any) -> None:
        """Closes the environments."""
        del kwargs
        for env in self.envs:
            env.close()


def sequential(
    env: EnvSource, num_envs: int, like: make.Spaces | None = None
) -> SequentialVectorEnv:
    """Environments stepped in turn; `like` as in `make_env`."""
    return SequentialVectorEnv(functools.partial(make_env, resolve(env), like=like), num_envs)


def force_reset(envs: VectorEnv[Any, Any, Any], b: int) -> bool:
    """Makes environment b reset in its next step, as after an episode's end.

    Returns:
        True if supported. gymnasium has no public API for this: in its native environments a
        private flag is set.
    """
    for flags in ("resetting", "prev_done"):  # ours, gymnasium's native environments
        resetting = getattr(envs, flags, None)
        if resetting is not None:
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
    return sequential(source, num_envs, like)


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
