"""Rollouts: T steps of B environments in buffers that are allocated once and reused."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import Tensor

from hogwild_rl.envs import codecs, subproc, vectorize
from hogwild_rl.envs.codecs import EnvCodec


def nonfinite_envs(rewards: Any, observations: Any) -> list[int]:
    """Returns the indices of environments with a non-finite reward or observation, ascending.

    Args:
        rewards: floats, [T, B].
        observations: floats or bytes, [T, B, *O].

    >>> nonfinite_envs(np.array([[0.0, np.inf], [1.0, 2.0]]), np.zeros((2, 2, 3)))
    [1]
    """
    if _all_finite(rewards) and _all_finite(observations):
        return []
    finite = np.isfinite(rewards).all(axis=0)
    finite &= np.isfinite(observations).all(axis=(0, *range(2, observations.ndim)))
    indices: list[int] = np.flatnonzero(~finite).tolist()
    return indices


def _all_finite(values: Any) -> bool:
    """True if all values are finite. Runs once per rollout, so it allocates no array of flags."""
    if values.dtype.kind != "f":
        return True
    return math.isfinite(values.min()) and math.isfinite(values.max())


Act: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""Maps observations [B, *O] and a state [2, B, H] to actions [B, *A] and the next state."""

_FLAGS = ("rewards", "terminated", "truncated", "valid")


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Rollout: T steps of B environments.

    The final observation of an episode is in the next row. The step after it only resets the
    environment and is not valid.

    Attributes:
        observations: s_t for t = 0..T, [T+1, B, *O].
        state: recurrent state before row 0, [2, B, H].
        actions: a_t, [T, B, *A].
        rewards: transformed r_t, [T, B]; 0 where not valid, NaN in columns of `nonfinite_envs`.
        terminated: [T, B] bool.
        truncated: [T, B] bool.
        valid: [T, B] bool, False where the step only reset the environment or returned no outcome.
    """

    observations: Tensor
    state: Tensor
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
        env_codec: EnvCodec,
        device: torch.device | None = None,
        pinned: bool = False,
    ) -> "Rollout":
        """Buffers for T steps of B environments."""

        def zeros(*shape: int, dtype: Any) -> Tensor:
            torch_dtype = torch.from_numpy(np.empty(0, dtype)).dtype
            return torch.zeros(shape, dtype=torch_dtype, device=device, pin_memory=pinned)

        observation, action = env_codec.observations, env_codec.actions
        return cls(
            observations=zeros(T + 1, B, *observation.shape, dtype=observation.dtype),
            state=zeros(2, B, env_codec.state_size, dtype=np.float32),
            actions=zeros(T, B, *action.shape, dtype=action.dtype),
            rewards=zeros(T, B, dtype=np.float32),
            terminated=zeros(T, B, dtype=np.bool_),
            truncated=zeros(T, B, dtype=np.bool_),
            valid=zeros(T, B, dtype=np.bool_),
        )


class Collector:
    """Steps vector environments with a policy; each `collect` fills the same rollout buffers.

    With several groups of environments the policy acts for one group while the others step, if
    they step asynchronously. A row of the rollout holds the same step of all groups.

    Attributes:
        rollout: the buffers, overwritten by each `collect`.
        host: copy of the rollout in host memory, except its recurrent state, which is not updated.
        episodes: (undiscounted return, length) of the episodes that ended in the last `collect`.
        steps: number of valid transitions in the last `collect`.
        nonfinite_envs: environments that returned a non-finite reward or observation in the last
            `collect`; their episodes are aborted.

    Args:
        groups: vector environments with NEXT_STEP autoreset; each has its columns of the rollout.
        env_codec: codec between the environments and the policy.
        n_steps: T ≥ 1.
        seed: seed of the environments.
        lap: called with "act" or "env" at the end of that phase, to time it.
        device: device of the rollout, which is filled through `host`; if None, `rollout` is `host`.
    """

    def __init__(
        self,
        groups: Sequence[VectorEnv[Any, Any, Any]],
        env_codec: EnvCodec,
        n_steps: int,
        seed: int,
        lap: Callable[[str], None],
        device: torch.device | None = None,
    ) -> None:
        T, B = n_steps, sum(envs.num_envs for envs in groups)
        pinned = device is not None and device.type == "cuda"
        self.host = Rollout.empty(T, B, env_codec, pinned=pinned)
        self.rollout = self.host if device is None else Rollout.empty(T, B, env_codec, device)
        self.episodes: list[tuple[float, int]] = []
        self.steps = 0
        self.nonfinite_envs: list[int] = []
        self._env_codec, self._lap, self._staged = env_codec, lap, device is not None
        observed, acted = env_codec.observations, env_codec.actions
        # None where there is nothing to convert: these are called in every step.
        plain = isinstance(observed.space, spaces.Box) and observed.space.shape == observed.shape
        self._encode = None if plain else observed.rows
        self._decode = None if acted.to_env is codecs.unchanged else acted.to_env
        self._arrays = {  # views of the host's buffers
            field.name: getattr(self.host, field.name).numpy()
            for field in dataclasses.fields(Rollout)
        }
        self._state = torch.zeros_like(self.rollout.state)  # current recurrent state
        self._ended = np.zeros((T, B), dtype=bool)  # without ends by a lost life
        self._resetting = np.zeros(B, dtype=bool)  # the next step only resets these
        self._lives = np.zeros(B)
        self._returns, self._lengths = np.zeros(B), np.zeros(B, dtype=np.int64)
        self._groups: list[_Group] = []
        for envs in groups:
            start = sum(group.envs.num_envs for group in self._groups)
            columns = slice(start, start + envs.num_envs)
            self._groups.append(_Group(envs, columns, self.rollout, self._state))
        self.begin(seed)

    def begin(self, seed: int) -> None:
        """Resets every environment."""
        for tensor in self.carried.values():
            tensor.zero_()
        for group in self._groups:
            observation, _ = group.envs.reset(seed=seed + group.columns.start)
            rows = observation if self._encode is None else self._encode(observation)
            self._arrays["observations"][-1, group.columns] = rows
            self._resetting[group.columns] = group.lost

    @property
    def carried(self) -> dict[str, Tensor]:
        """State carried from one rollout to the next, by name, as writable views."""
        arrays = (self._resetting, self._lives, self._returns, self._lengths)
        names = ("resetting", "lives", "returns", "lengths")
        tensors = {"observations": self.host.observations[-1], "state": self._state}
        return tensors | {n: torch.from_numpy(a) for n, a in zip(names, arrays, strict=True)}

    @torch.inference_mode()
    def collect(self, act: Act) -> Rollout:
        """Runs T steps and returns the rollout, which the next call overwrites."""
        T = len(self.rollout.actions)
        self.host.observations[0].copy_(self.host.observations[-1])
        if self._staged:
            self.rollout.observations[0].copy_(self.host.observations[0], non_blocking=True)
        self.rollout.state.copy_(self._state)
        self.episodes.clear()
        for t in range(T):
            for group in self._groups:
                if t > 0:
                    self._receive(group, t - 1)
                self._send(group, t, act)
        for group in self._groups:
            self._receive(group, T - 1)
        self._drop_nonfinite()
        if self._env_codec.rewards is not None:
            arrays = self._arrays
            self._env_codec.rewards(arrays["rewards"], self._ended, arrays["valid"])
        # After the transformation, as clipping can make NaN or ∞ finite. The update is dropped.
        self._arrays["rewards"][:, self.nonfinite_envs] = np.nan
        if self._staged:
            for name in _FLAGS:
                getattr(self.rollout, name).copy_(getattr(self.host, name), non_blocking=True)
        self.steps = int(self._arrays["valid"].sum())
        return self.rollout

    def _send(self, group: "_Group", t: int, act: Act) -> None:
        """Selects the actions of a group and starts its step t."""
        columns = group.columns
        actions, state = act(group.rows[t], group.state)
        if state is not None and self._env_codec.state_size:
            group.state.copy_(state)
        if self._staged:
            self.rollout.actions[t, columns] = actions
            actions = actions.cpu()
        host_actions = actions.numpy()
        self._arrays["actions"][t, columns] = host_actions
        self._lap("act")
        taken = host_actions if self._decode is None else self._decode(host_actions)
        if group.asynchronous:
            group.envs.step_async(taken)
        else:
            group.actions = taken

    def _receive(self, group: "_Group", t: int) -> None:
        """Stores the outcome of step t of a group."""
        envs = group.envs
        outcome = envs.step_wait() if group.asynchronous else envs.step(group.actions)
        observation, reward, terminated, truncated, info = outcome
        columns, arrays = group.columns, self._arrays
        rows = observation if self._encode is None else self._encode(observation)
        arrays["observations"][t + 1, columns] = rows
        if self._staged:
            staged = self.host.observations[t + 1, columns]
            self.rollout.observations[t + 1, columns].copy_(staged, non_blocking=True)
        valid = ~(self._resetting[columns] | group.lost)
        arrays["rewards"][t, columns] = reward * valid
        arrays["terminated"][t, columns] = terminated
        arrays["truncated"][t, columns] = truncated
        arrays["valid"][t, columns] = valid
        if self._env_codec.terminal_on_life_loss and "lives" in info:
            lives = info["lives"]
            arrays["terminated"][t, columns] |= valid & (lives < self._lives[columns])
            self._lives[columns] = lives
        if self._env_codec.state_size and not valid.all():
            reset = torch.from_numpy(~valid).to(self._state.device)
            group.state.masked_fill_(reset.unsqueeze(-1), 0.0)
        self._returns[columns] += reward
        self._lengths[columns] += valid
        ended = terminated | truncated | group.lost
        self._ended[t, columns] = self._resetting[columns] = ended
        for b in columns.start + np.flatnonzero(ended):
            if arrays["valid"][t, b]:  # otherwise the environment and its episode were lost
                self.episodes.append((float(self._returns[b]), int(self._lengths[b])))
            self._returns[b] = self._lengths[b] = 0
        self._lap("env")

    def _drop_nonfinite(self) -> None:
        """Resets environments that returned non-finite numbers, and drops their episodes."""
        self.nonfinite_envs = nonfinite_envs(
            self._arrays["rewards"], self._arrays["observations"][1:]
        )
        if self.nonfinite_envs:  # one non-finite return would make the mean non-finite
            self.episodes[:] = [each for each in self.episodes if math.isfinite(each[0])]
        for b in self.nonfinite_envs:
            group = next(group for group in self._groups if b < group.columns.stop)
            if vectorize.force_reset(group.envs, b - group.columns.start):
                self._resetting[b] = True
            self._ended[-1, b] = True
            self._returns[b] = self._lengths[b] = 0
            # The last row becomes row 0 of the next rollout.
            self.host.observations[-1, b] = self.rollout.observations[-1, b] = 0
            self._state[:, b] = 0


class _Group:
    """Environments that step together, with their columns of the rollout and of the state."""

    def __init__(
        self, envs: VectorEnv[Any, Any, Any], columns: slice, rollout: Rollout, state: Tensor
    ) -> None:
        self.envs: Any = envs
        self.columns, self.state = columns, state[:, columns]
        self.rows = [row[columns] for row in rollout.observations.unbind()]
        self.asynchronous = isinstance(envs, vectorize.AsyncVectorEnv)
        self.actions: Any = None  # of the step to come, of environments that are not asynchronous
        self.lost = subproc.lost(envs)
