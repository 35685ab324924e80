"""What was lived through, kept to be learnt from many times."""

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
    """N transitions, each drawn from all that are kept with equal probability.

    Attributes:
        observations: s, [N, *O].
        actions: a, [N, A].
        rewards: r, [N].
        next_observations: s', [N, *O].
        terminated: [N] bool; a time limit is not marked, there is a future behind it.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    terminated: Tensor


_ALIGNED = 64  # bytes
# What of a Replay goes into a file.
_STATE = (
    *("_observations", "_actions", "_rewards", "_terminated"),
    *("_places", "_valid", "_oldest", "_kept", "_row"),
)


class ReplayBuffer:
    """The newest transitions of B environments, the oldest overwritten.

    An observation is kept once: the one that follows is the next row. A step that only reset an
    environment is kept as a row, and never drawn.

    Args:
        capacity: steps that are kept at least, over all environments, resets among them.
        B: environments.
        env_codec: to them; says what a row is.
    """

    def __init__(self, capacity: int, B: int, env_codec: EnvCodec) -> None:
        T = _rows(capacity, B)
        seen, chosen = env_codec.observations, env_codec.actions
        self._observations = _room((T, B, *seen.shape), seen.dtype)
        self._actions = _room((T, B, *chosen.shape), np.float32)
        self._rewards = _room((T, B), np.float32)
        self._terminated = _room((T, B), np.bool_)
        # Where valid transitions begin, the oldest first, in a ring; places are counted row by row.
        self._places = _room((T * B,), np.int64)
        self._valid = _room((T,), np.int64)  # valid transitions in each row
        self._oldest = self._kept = 0
        self._row = 0  # what is written next, but for its observations, which are there

    def __len__(self) -> int:
        """How many transitions can be drawn."""
        return self._kept

    def begin(self, observations: Any) -> None:
        """The observations in which the first actions are chosen, [B, *O]."""
        self._observations[self._row] = observations

    def add(
        self, actions: Any, rewards: Any, next_observations: Any, terminated: Any, valid: Any
    ) -> None:
        """Keeps one step of every environment.

        Args:
            actions: as the policy gave them, [B, A].
            rewards: [B].
            next_observations: [B, *O].
            terminated: [B] bool.
            valid: [B] bool, False where the step only reset the environment.
        """
        row, (T, B) = self._row, self._rewards.shape
        following = (row + 1) % T
        self._forget(following)
        self._actions[row] = actions
        self._rewards[row] = rewards
        self._terminated[row] = terminated
        self._observations[following] = next_observations
        places = row * B + np.flatnonzero(valid)
        ring = (self._oldest + self._kept + np.arange(len(places))) % (T * B)
        self._places[ring] = places
        self._valid[row] = len(places)
        self._kept += len(places)
        self._row = following

    def empty(
        self, count: int, device: torch.device | None = None, pinned: bool = False
    ) -> tuple[Tensor, Transitions]:
        """A batch of N = `count`, after the bytes in one piece that its tensors are views of."""
        kept = (self._observations, self._actions, self._rewards, self._observations)
        shapes = [((count, *each.shape[2:]), each.dtype) for each in (*kept, self._terminated)]
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
        """`count` transitions, drawn with replacement; into `out` where it is given."""
        batch = self.empty(count)[1] if out is None else out
        T, B = self._rewards.shape
        drawn = torch.randint(self._kept, (count,), generator=generator).numpy()
        places = self._places[(drawn + self._oldest) % (T * B)]
        _take(self._observations, places, batch.observations)
        _take(self._actions, places, batch.actions)
        _take(self._rewards, places, batch.rewards)
        _take(self._observations, (places + B) % (T * B), batch.next_observations)
        _take(self._terminated, places, batch.terminated)
        return batch

    def state(self) -> dict[str, Any]:
        """For a file; the tensors in it are those that are written on."""
        values = {name: getattr(self, name) for name in _STATE}
        return {n: v if isinstance(v, int) else torch.from_numpy(v) for n, v in values.items()}

    def restore(self, state: dict[str, Any]) -> bool:
        """Takes up what `state` gave, and leaves the step that was open then.

        Returns:
            Whether it fits, in size, environments and spaces; otherwise nothing was changed.
        """
        if any(_kind(state.get(name)) != _kind(now) for name, now in self.state().items()):
            return False
        for name in _STATE:
            if isinstance(state[name], int):
                setattr(self, name, state[name])
            else:
                getattr(self, name)[...] = state[name].numpy()
        self._row = (self._row + 1) % len(self._rewards)
        self._forget(self._row)
        return True

    def _forget(self, row: int) -> None:
        """Forgets the transitions that begin in a row which is about to be overwritten."""
        size = len(self._places)
        self._oldest = (self._oldest + int(self._valid[row])) % size
        self._kept -= int(self._valid[row])
        self._valid[row] = 0


def size_in_bytes(capacity: int, B: int, env_codec: EnvCodec) -> int:
    """What a `Replay` takes of the machine's memory."""
    seen, chosen = env_codec.observations, env_codec.actions
    observation = math.prod(seen.shape) * np.dtype(seen.dtype).itemsize
    others = 4 * math.prod(chosen.shape) + 4 + 1 + 8
    return _rows(capacity, B) * (B * (observation + others) + 8)


def _room(shape: tuple[int, ...], dtype: Any) -> Any:
    """Zeros that are there: `np.zeros` would promise memory and take it later."""
    return np.full(shape, 0, dtype)


def _take(kept: Any, places: Any, out: Tensor) -> None:
    """Rows of [T, B, ...], counted by places, into [N, ...]."""
    rows = kept.reshape(-1, *kept.shape[2:])
    rows.take(places, 0, out=out.numpy(), mode="clip")  # other modes go through a buffer


def _rows(capacity: int, B: int) -> int:
    """One more than the capacity wants: the newest row has observations only."""
    return -(-capacity // B) + 1


def _kind(value: Any) -> Any:
    """What two values must have in common for one to take the other's place."""
    return (value.shape, value.dtype) if isinstance(value, Tensor) else type(value)
