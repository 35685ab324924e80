"""Uniform replay buffer."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hogwild_rl.envs.codecs import EnvCodec


@dataclasses.dataclass(frozen=True)
class Transitions:
    """Minibatch of N transitions, sampled uniformly from the replay buffer.

    Attributes:
        observations: s, [N, *O].
        actions: a, [N, A].
        rewards: r, [N].
        next_observations: s', [N, *O].
        terminated: [N] bool; False at a time limit, where the target bootstraps.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    terminated: Tensor


_ALIGNED = 64  # bytes
# Attributes of a ReplayBuffer that are saved.
_STATE = (
    *("_observations", "_actions", "_rewards", "_terminated"),
    *("_places", "_valid", "_oldest", "_kept", "_row"),
)


class ReplayBuffer:
    """Uniform replay buffer of B environments; new transitions overwrite the oldest.

    An observation is stored once: the next observation s' is in the next row. A step that only
    reset an environment occupies a row and is never sampled.

    Args:
        capacity: minimum number of steps stored, over all environments, including reset steps.
        B: number of environments.
        env_codec: defines the shapes and dtypes of observations and actions.
    """

    def __init__(self, capacity: int, B: int, env_codec: EnvCodec) -> None:
        T = _num_rows(capacity, B)
        observation, action = env_codec.observations, env_codec.actions
        self._observations = _zeros((T, B, *observation.shape), observation.dtype)
        self._actions = _zeros((T, B, *action.shape), np.float32)
        self._rewards = _zeros((T, B), np.float32)
        self._terminated = _zeros((T, B), np.bool_)
        # Ring of the flat indices row * B + b of valid transitions, the oldest first.
        self._places = _zeros((T * B,), np.int64)
        self._valid = _zeros((T,), np.int64)  # valid transitions in each row
        self._oldest = self._kept = 0
        self._row = 0  # the next row to write; its observations are already stored

    def __len__(self) -> int:
        """Number of transitions that can be sampled."""
        return self._kept

    def begin(self, observations: Any) -> None:
        """Stores the observations of the first reset, [B, *O]."""
        self._observations[self._row] = observations

    def add(
        self, actions: Any, rewards: Any, next_observations: Any, terminated: Any, valid: Any
    ) -> None:
        """Stores one step of every environment.

        Args:
            actions: normalized actions in −1..1, [B, A].
            rewards: [B].
            next_observations: [B, *O].
            terminated: [B] bool.
            valid: [B] bool, False where the step only reset the environment.
        """
        row, (T, B) = self._row, self._rewards.shape
        next_row = (row + 1) % T
        self._discard_row(next_row)
        self._actions[row] = actions
        self._rewards[row] = rewards
        self._terminated[row] = terminated
        self._observations[next_row] = next_observations
        places = row * B + np.flatnonzero(valid)
        ring = (self._oldest + self._kept + np.arange(len(places))) % (T * B)
        self._places[ring] = places
        self._valid[row] = len(places)
        self._kept += len(places)
        self._row = next_row

    def empty(
        self, count: int, device: torch.device | None = None, pinned: bool = False
    ) -> tuple[Tensor, Transitions]:
        """Allocates one block of bytes, and a minibatch of N = `count` of views of it."""
        arrays = (self._observations, self._actions, self._rewards, self._observations)
        shapes = [((count, *each.shape[2:]), each.dtype) for each in (*arrays, self._terminated)]
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in shapes]
        starts = [0, *itertools.accumulate(-(-size // _ALIGNED) * _ALIGNED for size in sizes)]
        flat = torch.zeros(starts[-1], dtype=torch.uint8, device=device, pin_memory=pinned)
        views = [
            flat[start : start + size].view(torch.from_numpy(np.empty(0, dtype)).dtype).view(shape)
            for start, size, (shape, dtype) in zip(starts[:-1], sizes, shapes, strict=True)
        ]
        return flat, Transitions(*views)

    def sample(
        self, count: int, generator: torch.Generator, out: Transitions | None = None
    ) -> Transitions:
        """Samples `count` transitions with replacement, into `out` if given."""
        batch = self.empty(count)[1] if out is None else out
        T, B = self._rewards.shape
        indices = torch.randint(self._kept, (count,), generator=generator).numpy()
        places = self._places[(indices + self._oldest) % (T * B)]
        _take(self._observations, places, batch.observations)
        _take(self._actions, places, batch.actions)
        _take(self._rewards, places, batch.rewards)
        _take(self._observations, (places + B) % (T * B), batch.next_observations)
        _take(self._terminated, places, batch.terminated)
        return batch

    def state(self) -> dict[str, Any]:
        """Returns the state to save; its tensors share memory with the buffer."""
        values = {name: getattr(self, name) for name in _STATE}
        return {n: v if isinstance(v, int) else torch.from_numpy(v) for n, v in values.items()}

    def restore(self, state: dict[str, Any]) -> bool:
        """Restores a saved `state`; the step that was incomplete when it was saved is skipped.

        Returns:
            True if size, number of environments and spaces agree; if not, nothing is changed.
        """
        if any(_layout(state.get(name)) != _layout(now) for name, now in self.state().items()):
            return False
        for name in _STATE:
            if isinstance(state[name], int):
                setattr(self, name, state[name])
            else:
                getattr(self, name)[...] = state[name].numpy()
        self._row = (self._row + 1) % len(self._rewards)
        self._discard_row(self._row)
        return True

    def _discard_row(self, row: int) -> None:
        """Removes the transitions that begin in a row which is about to be overwritten."""
        size = len(self._places)
        self._oldest = (self._oldest + int(self._valid[row])) % size
        self._kept -= int(self._valid[row])
        self._valid[row] = 0


def size_in_bytes(capacity: int, B: int, env_codec: EnvCodec) -> int:
    """Memory of a `ReplayBuffer` in bytes."""
    observation, action = env_codec.observations, env_codec.actions
    observation_bytes = math.prod(observation.shape) * np.dtype(observation.dtype).itemsize
    other_bytes = 4 * math.prod(action.shape) + 4 + 1 + 8
    return _num_rows(capacity, B) * (B * (observation_bytes + other_bytes) + 8)


def _zeros(shape: tuple[int, ...], dtype: Any) -> Any:
    """Zeros in allocated memory; the pages of `np.zeros` are allocated on the first write."""
    return np.full(shape, 0, dtype)


def _take(values: Any, places: Any, out: Tensor) -> None:
    """Copies the entries of values [T, B, ...] at flat indices [N] into out [N, ...]."""
    rows = values.reshape(-1, *values.shape[2:])
    rows.take(places, 0, out=out.numpy(), mode="clip")  # other modes allocate a buffer


def _num_rows(capacity: int, B: int) -> int:
    """Number of rows: one more than the capacity needs, as the newest row has observations only."""
    return -(-capacity // B) + 1


def _layout(value: Any) -> Any:
    """Shape and dtype of a tensor, or the type of another value."""
    return (value.shape, value.dtype) if isinstance(value, Tensor) else type(value)
