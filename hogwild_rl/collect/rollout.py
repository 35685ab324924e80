"""Rollouts: T steps of B environments in buffers that are allocated once and reused."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import Tensor

from hogwild_rl.envs import codecs, vectorize
from hogwild_rl.envs.codecs import EnvCodec


def nonfinite_envs(rewards: Any, observations: Any) -> list[int]:
    """Returns the indices of environments with a non-finite reward or observation, ascending.

    Args:
        rewards: floats, [T, B].
        observations: floats or bytes, [T, B, *O].

    >>> nonfinite_envs(np.array([[0.0, np.inf], [1.0, 2.0]]), np.zeros((2, 2, 3)))
    [1]
    """
    indices: set[int] = set()
    for values in (rewards, observations):  # np.count_nonzero takes 0.2 µs, `all` 2 µs
        if values.dtype.kind == "f" and np.count_nonzero(np.isfinite(values)) < values.size:
            finite = np.isfinite(values).all(axis=(0, *range(2, values.ndim)))
            indices.update(np.flatnonzero(~finite).tolist())
    return sorted(indices)


Act: TypeAlias = Callable[[Any, Any], tuple[Any, Any]]
"""Maps observations [B, *O] and a state [2, B, H] to actions [B, *A] and the next state, or None.

All are tensors, or NumPy arrays if the collector has `arrays`.
"""

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
        lap: times the phases "env" and "act", as `CounterWriter.lap`.
        device: device of the rollout, which is filled through `host`; if None, `rollout` is `host`.
        arrays: the policy maps arrays instead of tensors, on the host.
    """

    def __init__(
        self,
        groups: Sequence[VectorEnv[Any, Any, Any]],
        env_codec: EnvCodec,
        n_steps: int,
        seed: int,
        lap: Callable[..., None],
        device: torch.device | None = None,
        arrays: bool = False,
    ) -> None:
        T, B = n_steps, sum(envs.num_envs for envs in groups)
        pinned = device is not None and device.type == "cuda"
        self.host = Rollout.empty(T, B, env_codec, pinned=pinned)
        self.rollout = self.host if device is None else Rollout.empty(T, B, env_codec, device)
        self.episodes: list[tuple[float, int]] = []
        self.steps = 0
        self.nonfinite_envs: list[int] = []
        self._env_codec, self._lap, self._staged = env_codec, lap, device is not None
        self._on_arrays, self._encode = arrays, env_codec.observations.rows
        self._mode = contextlib.nullcontext if arrays else torch.inference_mode
        observed, acted = env_codec.observations, env_codec.actions
        self._plain = (
            isinstance(observed.space, spaces.Box) and observed.space.shape == observed.shape
        )
        # None where there is nothing to convert: it is called in every step.
        self._decode = None if acted.to_env is codecs.unchanged else acted.to_env
        self._arrays = {  # views of the host's buffers
            field.name: getattr(self.host, field.name).numpy()
            for field in dataclasses.fields(Rollout)
        }
        self._state = torch.zeros_like(self.rollout.state)  # current recurrent state
        # As the environments return them: rewards, and ends without those by a lost life.
        self._rewards, self._lives = np.zeros((T, B)), np.zeros((T + 1, B))
        self._ended, self._lost = (np.zeros((T, B), dtype=bool) for _ in range(2))
        self._resetting = np.zeros(B, dtype=bool)  # the next step only resets these
        self._returns, self._lengths = np.zeros(B), np.zeros(B, dtype=np.int64)
        self._groups: list[_Group] = []
        for envs in groups:
            start = sum(group.envs.num_envs for group in self._groups)
            columns = slice(start, start + envs.num_envs)
            self._groups.append(_Group(envs, columns, self))
        self._may_lose = any(group.lost is not None for group in self._groups)
        self._records_more = bool(
            self._staged
            or self._may_lose
            or env_codec.terminal_on_life_loss
            or env_codec.state_size
        )
        self.begin(seed)

    def begin(self, seed: int) -> None:
        """Resets every environment."""
        for tensor in self.carried.values():
            tensor.zero_()
        for group in self._groups:
            observation, _ = group.envs.reset(seed=seed + group.columns.start)
            self._arrays["observations"][-1, group.columns] = self._encode(observation)
            if group.lost is not None:
                self._resetting[group.columns] = group.lost

    @property
    def carried(self) -> dict[str, Tensor]:
        """State carried from one rollout to the next, by name, as writable views."""
        arrays = (self._resetting, self._lives[0], self._returns, self._lengths)
        names = ("resetting", "lives", "returns", "lengths")
        tensors = {"observations": self.host.observations[-1], "state": self._state}
        return tensors | {n: torch.from_numpy(a) for n, a in zip(names, arrays, strict=True)}

    def collect(self, act: Act) -> Rollout:
        """Runs T steps and returns the rollout, which the next call overwrites."""
        with self._mode():
            T, observations = len(self._rewards), self._arrays["observations"]
            observations[0] = observations[-1]
            if self._staged:
                self.rollout.observations[0].copy_(self.host.observations[0], non_blocking=True)
            if self._env_codec.state_size:
                self.rollout.state.copy_(self._state)
            for t in range(T + 1):
                for group in self._groups:
                    self._advance(group, t, act)
            self._finish()
        return self.rollout

    def _advance(self, group: "_Group", t: int, act: Act) -> None:
        """Ends step t − 1 of a group, and selects the actions of its step t.

        A group that steps asynchronously starts step t at once, another one when it ends the step.
        """
        env_end_s: float | None = None
        if t > 0:
            if group.direct:
                infos = group.envs.step_into(*group.targets[t - 1], group.actions)
            else:
                infos = self._step(group, t - 1)
            if self._records_more:
                self._record_more(group, t - 1, infos)
            env_end_s = time.monotonic()
        if t == len(self._rewards):
            self._lap("env")
            return
        actions, state = act(group.rows[t], group.state)
        if state is not None and self._env_codec.state_size:
            group.state.copy_(state)
        if self._staged:
            self.rollout.actions[t, group.columns] = actions
            actions = actions.cpu()
        if not self._on_arrays:
            actions = actions.numpy()
        self._arrays["actions"][t, group.columns] = actions
        group.actions = actions if self._decode is None else self._decode(actions)
        self._lap("act", env_end_s)
        if group.asynchronous:
            group.envs.step_async(group.actions)

    def _step(self, group: "_Group", t: int) -> Any:
        """Stores the outcome of step t of a group, and returns its infos."""
        envs = group.envs
        outcome = envs.step_wait() if group.asynchronous else envs.step(group.actions)
        observation, *others, infos = outcome
        rows = observation if self._plain else self._encode(observation)
        for target, values in zip(group.targets[t], (rows, *others), strict=True):
            target[...] = values
        return infos

    def _record_more(self, group: "_Group", t: int, infos: dict[str, Any]) -> None:
        """Stores what only some runs need of step t: copies, lost environments, lives, states."""
        if self._staged:
            staged = self.host.observations[t + 1, group.columns]
            self.rollout.observations[t + 1, group.columns].copy_(staged, non_blocking=True)
        if group.lost is not None:
            self._lost[t, group.columns] = group.lost
        if self._env_codec.terminal_on_life_loss:
            lives = infos.get("lives", self._lives[t, group.columns])
            self._lives[t + 1, group.columns] = lives
        if self._env_codec.state_size:
            self._reset_state(group, t)

    def _reset_state(self, group: "_Group", t: int) -> None:
        """Sets the recurrent state to 0 where step t was not valid."""
        arrays, columns = self._arrays, group.columns
        invalid = self._resetting[columns] | self._lost[t, columns]
        if t > 0:
            ended = arrays["terminated"][t - 1, columns] | arrays["truncated"][t - 1, columns]
            invalid = ended | self._lost[t - 1, columns] | self._lost[t, columns]
        if invalid.any():
            reset = torch.from_numpy(invalid).to(self._state.device)
            group.state.masked_fill_(reset.unsqueeze(-1), 0.0)

    def _finish(self) -> None:
        """Computes what depends on whole columns: valid steps, episodes and rewards."""
        arrays, ended, valid = self._arrays, self._ended, self._arrays["valid"]
        np.logical_or(arrays["terminated"], arrays["truncated"], out=ended)
        if self._may_lose:
            ended |= self._lost
        np.logical_not(self._resetting, out=valid[0])
        np.logical_not(ended[:-1], out=valid[1:])
        if self._may_lose:
            valid &= ~self._lost
        self._resetting[:] = ended[-1]
        if self._env_codec.terminal_on_life_loss:
            arrays["terminated"] |= valid & (self._lives[1:] < self._lives[:-1])
            self._lives[0] = self._lives[-1]
        self.steps = int(np.count_nonzero(valid))
        self._count_episodes()
        np.multiply(self._rewards, valid, out=arrays["rewards"], casting="same_kind")
        self._drop_nonfinite()
        if self._env_codec.rewards is not None:
            self._env_codec.rewards(arrays["rewards"], ended, valid)
        if self.nonfinite_envs:
            # After the transformation: clipping can make NaN or ∞ finite. The update is dropped.
            arrays["rewards"][:, self.nonfinite_envs] = np.nan
        if self._staged:
            for name in _FLAGS:
                getattr(self.rollout, name).copy_(getattr(self.host, name), non_blocking=True)

    def _count_episodes(self) -> None:
        """Sums rewards and lengths of the segments between the ends of episodes."""
        T, B = self._rewards.shape
        valid = self._arrays["valid"]
        if not np.count_nonzero(self._ended):
            self.episodes.clear()
            self._returns += np.add.reduce(self._rewards, 0)
            self._lengths += np.add.reduce(valid, 0)
            return
        # Columns one after another, [B·T]; a segment starts at row 0 and after each end.
        ended = self._ended.T.ravel()
        first = np.flatnonzero(np.insert(self._ended.T[:, :-1], 0, values=True, axis=1))
        last = np.append(first[1:], B * T) - 1
        returns = np.add.reduceat(self._rewards.T.ravel(), first)
        lengths = np.add.reduceat(valid.T.ravel(), first, dtype=np.int64)
        returns[first % T == 0] += self._returns
        lengths[first % T == 0] += self._lengths
        # A lost environment, whose last step is not valid, has lost its episode.
        finished = np.flatnonzero(ended[last] & valid.T.ravel()[last])
        finished = finished[np.argsort(last[finished] % T, kind="stable")]
        pairs = zip(returns[finished].tolist(), lengths[finished].tolist(), strict=True)
        self.episodes[:] = pairs
        open_ = last % T == T - 1
        self._returns[:] = np.where(ended[last], 0, returns)[open_]
        self._lengths[:] = np.where(ended[last], 0, lengths)[open_]

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
        self, envs: VectorEnv[Any, Any, Any], columns: slice, collector: Collector
    ) -> None:
        self.envs: Any = envs
        self.columns, self.state = columns, collector._state[:, columns]
        arrays = collector._arrays
        observed = (
            arrays["observations"] if collector._on_arrays else collector.rollout.observations
        )
        self.rows = [row[columns] for row in observed]
        targets = (
            arrays["observations"][1:],
            collector._rewards,
            arrays["terminated"],
            arrays["truncated"],
        )
        self.targets = [tuple(row[columns] for row in rows) for rows in zip(*targets, strict=True)]
        self.direct = isinstance(envs, vectorize.SequentialVectorEnv) and collector._plain
        self.asynchronous = isinstance(envs, vectorize.AsyncVectorEnv)
        self.actions: Any = None  # of the step to come
        self.lost: Any = getattr(envs, "lost", None)
