"""Acting: T steps of B environments into buffers that are allocated once and reused."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor


class Policy(Protocol):
    """Anything that gives a distribution over actions."""

    def policy(self, observations: Tensor) -> Any:
        """A distribution over actions for observations [B, *O]."""


@dataclasses.dataclass(frozen=True)
class Rollout:
    """What was seen and done in T steps of B environments.

    The observation that ends an episode is simply the next row; the step after it only resets the
    environment, and is marked not valid.

    Attributes:
        observations: s_t for t = 0..T, [T+1, B, *O].
        actions: [T, B].
        rewards: [T, B]; 0 where not valid.
        terminated: [T, B] bool.
        truncated: [T, B] bool.
        valid: [T, B] bool, False where the step ignored its action and reset the environment.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor

    @classmethod
    def empty(cls, T: int, B: int, observation_shape: tuple[int, ...]) -> "Rollout":
        """Buffers for T steps of B environments."""
        return cls(
            observations=torch.zeros(T + 1, B, *observation_shape),
            actions=torch.zeros(T, B, dtype=torch.int64),
            rewards=torch.zeros(T, B),
            terminated=torch.zeros(T, B, dtype=torch.bool),
            truncated=torch.zeros(T, B, dtype=torch.bool),
            valid=torch.zeros(T, B, dtype=torch.bool),
        )


class Collector:
    """Steps one vector environment with a policy and fills one rollout, over and over.

    Attributes:
        rollout: the buffers, overwritten by each `collect`.
        episodes: (undiscounted return, length) of the episodes that ended in the last `collect`.
        steps: valid transitions in the last `collect`.

    Args:
        envs: a vector environment with NEXT_STEP autoreset.
        n_steps: T.
        seed: of the environments.
        generator: source of the sampled actions.
        lap: called with "act" or "env" when that phase ends, to be timed.
    """

    def __init__(
        self,
        envs: VectorEnv[Any, Any, Any],
        n_steps: int,
        seed: int,
        generator: torch.Generator,
        lap: Callable[[str], None],
    ) -> None:
        assert envs.single_observation_space.shape is not None
        B = envs.num_envs
        self.rollout = Rollout.empty(n_steps, B, envs.single_observation_space.shape)
        self.episodes: list[tuple[float, int]] = []
        self.steps = 0
        self._envs, self._generator, self._lap = envs, generator, lap
        # The same buffers as arrays: the environment's side of them.
        self._arrays = {
            field.name: getattr(self.rollout, field.name).numpy()
            for field in dataclasses.fields(Rollout)
        }
        self._arrays["observations"][-1] = envs.reset(seed=seed)[0]
        self._resetting = np.zeros(B, dtype=bool)  # these only reset in the step to come
        self._returns, self._lengths = np.zeros(B), np.zeros(B, dtype=np.int64)

    @torch.inference_mode()
    def collect(self, model: Policy) -> Rollout:
        """Takes T steps and returns the rollout, which the next call overwrites."""
        observations = self._arrays["observations"]
        observations[0] = observations[-1]
        rows = self.rollout.observations.unbind()
        self.episodes.clear()
        for t in range(len(self.rollout.actions)):
            actions = model.policy(rows[t]).sample(self._generator).numpy()
            self._arrays["actions"][t] = actions
            self._lap("act")
            observation, reward, terminated, truncated, _ = self._envs.step(actions)
            observations[t + 1] = observation
            self._note(t, reward, terminated, truncated)
            self._lap("env")
        self.steps = int(self._arrays["valid"].sum())
        return self.rollout

    def _note(self, t: int, reward: Any, terminated: Any, truncated: Any) -> None:
        arrays, valid = self._arrays, ~self._resetting
        arrays["rewards"][t] = reward * valid
        arrays["terminated"][t] = terminated
        arrays["truncated"][t] = truncated
        arrays["valid"][t] = valid
        self._returns += reward
        self._lengths += valid
        self._resetting = terminated | truncated
        for b in np.flatnonzero(self._resetting):
            self.episodes.append((float(self._returns[b]), int(self._lengths[b])))
            self._returns[b] = self._lengths[b] = 0
