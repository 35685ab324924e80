"""EnvPool environments, stepped by C++ threads, with gymnasium's vector API."""

import importlib.util
import warnings
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from hogwild_rl.envs import make


def installed() -> bool:
    """True if EnvPool is installed."""
    return importlib.util.find_spec("envpool") is not None


def has(spec: EnvSpec) -> bool:
    """True if EnvPool, which must be installed, has this registered environment."""
    import envpool

    return not spec.kwargs and not spec.additional_wrappers and spec.id in envpool.list_all_envs()


class PoolVectorEnv(VectorEnv[Any, Any, Any]):
    """Vector environment of EnvPool, with EnvPool's own NEXT_STEP autoreset.

    Dynamics are ported to C++: trajectories are not bit-identical to gymnasium's.

    Args:
        spec: spec for which `has` is true.
        num_envs: number of environments B ≥ 1.
        threads: maximum number of threads.
    """

    def __init__(self, spec: EnvSpec, num_envs: int, threads: int) -> None:
        self.num_envs, self.spec = num_envs, spec
        self._options = {
            "num_envs": num_envs,
            "num_threads": min(num_envs, threads),
            "max_episode_steps": spec.max_episode_steps,
        }
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        with gymnasium.make(spec, disable_env_checker=True) as single:
            self.single_observation_space = single.observation_space
            self.single_action_space = single.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._pool: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Makes a pool with the seeds `seed`, `seed` + 1, ..., since a pool cannot be reseeded.

        Without a seed an existing pool is reset and continues its random streams, as in gymnasium.
        """
        del options
        if seed is None and self._pool is not None:
            return self._pool.reset()[0], {}
        import envpool

        seeds = 0 if seed is None else [(seed + i) % 2**31 for i in range(self.num_envs)]
        self.close_extras()
        assert self.spec is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # precision of the spaces' bounds
            self._pool = envpool.make_gymnasium(self.spec.id, seed=seeds, **self._options)
            observation, _ = self._pool.reset()
        # float64 for MuJoCo, where gymnasium's spaces are float32.
        self._dtype = self._pool.spec.action_array_spec["action"].dtype
        return observation, {}

    def step(self, actions: make.Array) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Steps all environments."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: make.Array) -> None:
        """Starts a step."""
        self._pool.send(actions.astype(self._dtype, copy=False))

    def step_wait(self) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Waits for the step and returns its outcome."""
        observation, reward, terminated, truncated, _ = self._pool.recv()
        return observation, reward, terminated, truncated, {}

    def close_extras(self, **kwargs: Any) -> None:
        """Closes the pool and its threads."""
        del kwargs
        if self._pool is not None:
            self._pool.close()
            self._pool = None
