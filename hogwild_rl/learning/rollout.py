"""Acting: T steps of B environments into buffers that are allocated once and reused."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import Space
from gymnasium.vector import VectorEnv
from torch import Tensor

from hogwild_rl.envs import vector


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
    def empty(
        cls,
        T: int,
        B: int,
        observation_space: Space[Any],
        device: torch.device | None = None,
        pinned: bool = False,
    ) -> "Rollout":
        """Buffers for T steps of B environments; observations are bytes or float32."""
        assert observation_space.shape is not None
        dtype = torch.uint8 if observation_space.dtype == np.uint8 else torch.float32

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device, pin_memory=pinned)

        return cls(
            observations=zeros(T + 1, B, *observation_space.shape, dtype=dtype),
            actions=zeros(T, B, dtype=torch.int64),
            rewards=zeros(T, B, dtype=torch.float32),
            terminated=zeros(T, B, dtype=torch.bool),
            truncated=zeros(T, B, dtype=torch.bool),
            valid=zeros(T, B, dtype=torch.bool),
        )


class Collector:
    """Steps vector environments with a policy and fills one rollout, over and over.

    With several groups of environments the policy acts for one while the others step, where these
    can step by themselves. A row of the rollout holds the same step of all groups.

    Attributes:
        rollout: the buffers, overwritten by each `collect`.
        episodes: (undiscounted return, length) of the episodes that ended in the last `collect`.
        steps: valid transitions in the last `collect`.

    Args:
        groups: vector environments with NEXT_STEP autoreset, side by side in the rollout.
        n_steps: T.
        seed: of the environments.
        lap: called with "act" or "env" when that phase ends, to be timed.
        device: where the rollout lies, filled through a copy in the host's memory; without one the
            host's memory is the rollout.
    """

    def __init__(
        self,
        groups: Sequence[VectorEnv[Any, Any, Any]],
        n_steps: int,
        seed: int,
        lap: Callable[[str], None],
        device: torch.device | None = None,
    ) -> None:
        B = sum(envs.num_envs for envs in groups)
        space = groups[0].single_observation_space
        pinned = device is not None and device.type == "cuda"
        self._host = Rollout.empty(n_steps, B, space, pinned=pinned)
        self.rollout = self._host if device is None else Rollout.empty(n_steps, B, space, device)
        self.episodes: list[tuple[float, int]] = []
        self.steps = 0
        self._lap, self._staged = lap, device is not None
        # The host's buffers as arrays: the environments' side of them.
        self._arrays = {
            field.name: getattr(self._host, field.name).numpy()
            for field in dataclasses.fields(Rollout)
        }
        self._resetting = np.zeros(B, dtype=bool)  # these only reset in the step to come
        self._returns, self._lengths = np.zeros(B), np.zeros(B, dtype=np.int64)
        self._groups: list[_Group] = []
        for envs in groups:
            start = sum(group.envs.num_envs for group in self._groups)
            columns = slice(start, start + envs.num_envs)
            self._groups.append(_Group(envs, columns, self.rollout))
            self._observe(columns, -1, envs.reset(seed=seed + start)[0])

    @torch.inference_mode()
    def collect(self, act: Callable[[Tensor], Tensor]) -> Rollout:
        """Takes T steps and returns the rollout, which the next call overwrites.

        Args:
            act: gives actions [B] for observations [B, *O].
        """
        T = len(self.rollout.actions)
        self.rollout.observations[0].copy_(self.rollout.observations[-1])
        self.episodes.clear()
        for t in range(T):
            for group in self._groups:
                if t > 0:
                    self._receive(group, t - 1)
                actions = act(group.rows[t])
                if self._staged:
                    self.rollout.actions[t, group.columns] = actions
                    actions = actions.cpu()
                self._arrays["actions"][t, group.columns] = actions.numpy()
                self._lap("act")
                group.send(actions.numpy())
        for group in self._groups:
            self._receive(group, T - 1)
        if self._staged:
            for name in ("rewards", "terminated", "truncated", "valid"):
                getattr(self.rollout, name).copy_(getattr(self._host, name), non_blocking=True)
        self.steps = int(self._arrays["valid"].sum())
        return self.rollout

    def _receive(self, group: "_Group", t: int) -> None:
        """Notes how step t of a group came out."""
        observation, reward, terminated, truncated, _ = group.receive()
        columns, arrays = group.columns, self._arrays
        self._observe(columns, t + 1, observation)
        valid = ~self._resetting[columns]
        arrays["rewards"][t, columns] = reward * valid
        arrays["terminated"][t, columns] = terminated
        arrays["truncated"][t, columns] = truncated
        arrays["valid"][t, columns] = valid
        self._returns[columns] += reward
        self._lengths[columns] += valid
        ended = self._resetting[columns] = terminated | truncated
        for b in columns.start + np.flatnonzero(ended):
            self.episodes.append((float(self._returns[b]), int(self._lengths[b])))
            self._returns[b] = self._lengths[b] = 0
        self._lap("env")

    def _observe(self, columns: slice, row: int, observation: Any) -> None:
        self._arrays["observations"][row, columns] = observation
        if self._staged:
            staged = self._host.observations[row, columns]
            self.rollout.observations[row, columns].copy_(staged, non_blocking=True)


class _Group:
    """Environments that step together, and their columns of the rollout."""

    def __init__(self, envs: VectorEnv[Any, Any, Any], columns: slice, rollout: Rollout) -> None:
        self.envs, self.columns = envs, columns
        self.rows = [row[columns] for row in rollout.observations.unbind()]
        self.send, self.receive = vector.halves(envs)
