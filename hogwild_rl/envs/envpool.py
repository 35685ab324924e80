"""EnvPool's environments, stepped by threads in C++, behind gymnasium's contract."""

import importlib.util
import warnings
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from hogwild_rl.envs import make


def installed() -> bool:
    """Whether the extra is there."""
    return importlib.util.find_spec("envpool") is not None


def has(spec: EnvSpec) -> bool:
    """Whether EnvPool, which must be installed, has this environment as it is registered."""
    import envpool

    return not spec.kwargs and not spec.additional_wrappers and spec.id in envpool.list_all_envs()


class PoolVectorEnv(VectorEnv[Any, Any, Any]):
    """Environments of EnvPool; they autoreset in the next step by themselves.

    Their dynamics are ported to C++: trajectories are not gymnasium's to the last bit.

    Args:
        spec: one that `has` said yes to.
        num_envs: B ≥ 1.
        threads: that step them.
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
        """Makes the pool, whose seeds cannot be changed later: `seed`, `seed` + 1, ...

        Without a seed the pool there is goes on, as gymnasium has it.
        """
        del options
        if seed is None and self._pool is not None:
            return self._pool.reset()[0], {}
        import envpool

        seeds = 0 if seed is None else [(seed + i) % 2**31 for i in range(self.num_envs)]
        self.close_extras()
        assert self.spec is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the precision of its spaces' bounds
            self._pool = envpool.make_gymnasium(self.spec.id, seed=seeds, **self._options)
            observation, _ = self._pool.reset()
        # Doubles for MuJoCo, where gymnasium's spaces say float32.
        self._dtype = self._pool.spec.action_array_spec["action"].dtype
        return observation, {}

    def step(self, actions: make.Array) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One step of all."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: make.Array) -> None:
        """Starts a step."""
        self._pool.send(actions.astype(self._dtype, copy=False))

    def step_wait(self) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Waits for its outcome."""
        observation, reward, terminated, truncated, _ = self._pool.recv()
        return observation, reward, terminated, truncated, {}

    def close_extras(self, **kwargs: Any) -> None:
        """Ends its threads."""
        del kwargs
        if self._pool is not None:
            self._pool.close()
            self._pool = None
