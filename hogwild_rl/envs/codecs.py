"""Codecs between an environment's spaces and a policy's arrays."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard

import gymnasium
import numpy as np
from gymnasium import Space, spaces

from hogwild_rl.errors import UserError

Array: TypeAlias = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class ActionCodec:
    """Converts a policy's actions to an environment's.

    A policy's discrete actions start at 0, actions other than Discrete have one axis of length N,
    and continuous actions are unbounded. Only the environment receives clipped actions: the loss
    needs log π of the sampled ones, so a rollout stores the policy's actions.

        >>> codec = ActionCodec.of(spaces.Box(0, 10, (2, 1)), rescale=True)
        >>> codec.to_env(np.array([[0.5, -3]], np.float32)).tolist()
        [[[7.5], [0.0]]]

    Attributes:
        shape: shape of one policy action, () for Discrete and (N,) otherwise.
        dtype: type of policy actions, np.float32 for a Box and np.int64 otherwise.
        to_env: maps policy actions [B, *shape] to environment actions [B, *space.shape] in the
            space's dtype. It does not modify its argument, and returns it if nothing changes.
    """

    shape: tuple[int, ...]
    dtype: type[np.int64] | type[np.float32]
    to_env: Callable[[Array], Array]

    @classmethod
    def of(cls, space: gymnasium.Space[Any], rescale: bool = False) -> "ActionCodec":
        """Codec for an action space.

        Args:
            space: Discrete, MultiDiscrete, MultiBinary or a Box of floats.
            rescale: map [−1, 1] to [low, high] in each dimension of a Box that has both bounds.

        Raises:
            UserError: the space is not supported.
        """
        if isinstance(space, spaces.Discrete):
            if space.start == 0 and space.dtype == np.int64:
                return cls((), np.int64, unchanged)
            return cls((), np.int64, _choices(space, np.array(space.start)))
        shape = (math.prod(space.shape or ()),)
        if isinstance(space, spaces.MultiDiscrete):
            return cls(shape, np.int64, _choices(space, space.start.reshape(-1)))
        if isinstance(space, spaces.MultiBinary):
            return cls(shape, np.int64, _choices(space, np.zeros(shape)))
        if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
            return cls(shape, np.float32, _rescaled(space) if rescale else _clipped(space))
        raise UserError(
            f"action space {one_line(space)} is not supported: "
            "use Discrete, MultiDiscrete, MultiBinary or Box of floats"
        )


def one_line(value: Any) -> str:
    """String of a space or an observation, with each run of whitespace as one space."""
    return " ".join(str(value).split())


def _choices(
    space: spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary, start: Array
) -> Callable[[Array], Array]:
    # int64 for every dtype: the sum of int64 and uint64 would be a float.
    start = start.astype(np.int64)
    return functools.partial(_shift, start=start, shape=space.shape or (), dtype=space.dtype)


def _clipped(space: spaces.Box) -> Callable[[Array], Array]:
    low, high = space.low.reshape(-1), space.high.reshape(-1)
    return functools.partial(_clip, low=low, high=high, shape=space.shape, dtype=space.dtype)


def _rescaled(space: spaces.Box) -> Callable[[Array], Array]:
    low, high = (bound.astype(np.float64).reshape(-1) for bound in (space.low, space.high))
    bounded = high / 2 - low / 2 < _UNBOUNDED  # high − low may overflow
    low, high = np.where(bounded, low, -1), np.where(bounded, high, 1)
    middle, radius = high / 2 + low / 2, high / 2 - low / 2
    return functools.partial(_rescale, middle=middle, radius=radius, clip=_clipped(space))


def unchanged(actions: Array) -> Array:
    """Returns its argument: `to_env` of plain Discrete spaces."""
    return actions


def _shift(actions: Array, start: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    return (actions + start).astype(dtype, copy=False).reshape(len(actions), *shape)


def _clip(actions: Array, low: Array, high: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    # Two ufuncs take 1.5 µs, np.clip takes 2.1 µs.
    clipped = np.minimum(np.maximum(actions, low), high)
    return clipped.astype(dtype, copy=False).reshape(len(actions), *shape)


def _rescale(actions: Array, middle: Array, radius: Array, clip: Callable[[Array], Array]) -> Array:
    return clip(middle + radius * actions)


_UNBOUNDED = 1e30  # half the range of a dimension whose bounds only stand for none
_CHANNELS_AT_MOST = 16  # a longer axis is height or width
_SIDE_AT_LEAST = 16  # pixels; smaller arrays are mostly codes, for example the cells of a grid


@dataclasses.dataclass(frozen=True)
class Image:
    """Shape and range of an image.

    Attributes:
        shape: [H, W], [H, W, C] or [C, H, W], the last two also stacked, [frames, ...].
        channels_first: True for [H, W] and [..., C, H, W].
        high: upper bound of the values, 255 or 1; the lower bound is 0 or -1.
    """

    shape: tuple[int, ...]
    channels_first: bool
    high: float = 255

    @property
    def chw(self) -> tuple[int, int, int]:
        """Channels, height and width; stacked frames count as channels."""
        frames, first, middle, last = (1, 1, *self.shape)[-4:]
        if self.channels_first:
            return frames * first, middle, last
        return frames * last, first, middle


@dataclasses.dataclass(frozen=True)
class ObservationCodec:
    """Converts observations to rows of one array, the format of rollouts and networks.

    A single image keeps its shape; floats become float32, integers uint8. Other spaces are
    flattened to float32 as by gymnasium's `spaces.flatten`: Discrete and MultiDiscrete become
    one-hot, the parts of Dict and Tuple are concatenated; images among the parts come last, for
    separate encoders.

    Attributes:
        space: observation space of one environment.
        shape: shape of a row, *O.
        dtype: type of a row, uint8 or float32.
        vector: number of elements before the images; 0 for a single image.
        images: images of a row, in order.
        order: indices of the space's leaves in the order of a row.
    """

    space: Space[Any]
    shape: tuple[int, ...]
    dtype: type[np.generic]
    vector: int
    images: tuple[Image, ...]
    order: tuple[int, ...] = (0,)

    @classmethod
    def of(cls, space: Space[Any]) -> "ObservationCodec":
        """Codec for an observation space.

        Raises:
            UserError: the space is not supported.
        """
        image = as_image(space)
        if image is not None:
            dtype = np.float32 if np.issubdtype(space.dtype, np.floating) else np.uint8
            return cls(space, image.shape, dtype, 0, (image,))
        parts = list(leaves(space))
        found = [as_image(part) for part in parts]
        images = tuple(image for image in found if image is not None)
        vector = sum(_size(part) for part, image in zip(parts, found, strict=True) if image is None)
        pixels = sum(math.prod(image.shape) for image in images)
        order = sorted(range(len(parts)), key=lambda i: found[i] is not None)  # stable
        return cls(space, (vector + pixels,), np.float32, vector, images, tuple(order))

    def rows(self, observations: Any) -> Array:
        """Converts a vector environment's batch of observations to rows, [B, *O]."""
        if isinstance(self.space, spaces.Box):
            array: Array = np.asarray(observations)
            return array.reshape(len(array), *self.shape)
        parts = list(_parts(self.space, observations))
        return np.concatenate([_flat(*parts[i]) for i in self.order], axis=1)

    def row(self, observation: Any) -> Array:
        """Converts one observation to a row, [*O]."""
        return np.asarray(self.rows(batch_of_one(self.space, observation))[0])

    def batched(self, observations: Any) -> bool:
        """True for a batch of observations, False for one observation.

        Raises:
            UserError: neither.
        """
        batched = set()
        for space, part in _parts(self.space, observations):
            got, wanted = np.shape(part), space.shape
            if wanted not in (got, got[1:]):
                raise UserError(f"observations must have shape {wanted} or B of it, got {got}")
            batched.add(got != wanted)
        if len(batched) > 1:
            raise UserError("observations must be batched in all parts or in none, got a mixture")
        return batched == {True}


def as_image(space: Space[Any]) -> Image | None:
    """Image of an `image_like` space with sides of 16 pixels or more; None for other spaces.

    Its values are in 0..255, floats also in 0..1 or -1..1.
    """
    if not image_like(space):
        return None
    first, middle, last = (1, *space.shape)[-3:]
    channels, side = sorted((first, last))
    if channels > _CHANNELS_AT_MOST or min(side, middle) < _SIDE_AT_LEAST:
        return None
    floats = np.issubdtype(space.dtype, np.floating)
    for low, high in ((0, 255), (0, 1), (-1, 1)) if floats else ((0, 255),):
        if (space.low == low).all() and (space.high == high).all():
            return Image(space.shape, first < last, high)
    return None


def image_like(space: Space[Any]) -> TypeGuard[spaces.Box]:
    """True for a Box with the axes of an image; two axes of floats are mostly a time series."""
    axes = len(space.shape) if isinstance(space, spaces.Box) else 0
    return axes in (3, 4) or (axes == 2 and space.dtype == np.uint8)


def batch_of_one(space: Space[Any], observation: Any) -> Any:
    """Batch of one observation, in the format of vector environments."""
    if isinstance(space, spaces.Dict):
        return {key: batch_of_one(part, observation[key]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        parts = zip(space.spaces, observation, strict=True)
        return tuple(batch_of_one(part, given) for part, given in parts)
    return np.asarray(observation)[None]


def leaves(space: Space[Any]) -> Iterator[Space[Any]]:
    """Yields the non-composite subspaces of a space, in gymnasium's order."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        composed: Mapping[str, Space[Any]] | Sequence[Space[Any]] = space.spaces
        parts = composed.values() if isinstance(composed, Mapping) else composed
        for part in parts:
            yield from leaves(part)
    else:
        yield space


def _parts(space: Space[Any], batch: Any) -> Iterator[tuple[Space[Any], Any]]:
    """Yields the non-composite subspaces of a space, each with its part of a batch."""
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from _parts(part, batch[key])
    elif isinstance(space, spaces.Tuple):
        for part, given in zip(space.spaces, batch, strict=True):
            yield from _parts(part, given)
    else:
        yield space, batch


def _size(space: Space[Any]) -> int:
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        return math.prod(space.shape)
    raise UserError(
        f"observation space {one_line(space)} is not supported: use Box, Discrete, MultiDiscrete, "
        "MultiBinary, or Dict and Tuple of these"
    )


def _flat(space: Space[Any], batch: Any) -> Array:
    """Flattens a batch of a non-composite space to [B, size] float32."""
    if isinstance(space, spaces.Discrete):
        return _one_hot(np.asarray(batch)[:, None] - space.start, np.array([space.n]))
    if isinstance(space, spaces.MultiDiscrete):
        choices = np.asarray(batch) - space.start
        return _one_hot(choices.reshape(len(choices), -1), space.nvec.ravel())
    array = np.asarray(batch)
    return array.reshape(len(array), -1).astype(np.float32, copy=False)


def _one_hot(choices: Array, sizes: Array) -> Array:
    """One-hot encoding [B, Σ sizes] float32 of choices [B, N] in 0..sizes−1, sizes [N]."""
    B = len(choices)
    hot = np.zeros((B, int(sizes.sum())), dtype=np.float32)
    offsets = np.cumsum(sizes) - sizes
    hot[np.arange(B)[:, None], choices + offsets] = 1
    return hot


@dataclasses.dataclass(frozen=True)
class EnvCodec:
    """Codecs and reward transformation between a policy and its environments.

    Attributes:
        observations: observation codec.
        actions: action codec.
        state_size: size H of the policy's recurrent state.
        terminal_on_life_loss: a lost life counts as terminated, though the episode continues.
        rewards: transforms rewards [T, B] in place, given the ends of episodes [T, B] and the mask
            of valid transitions [T, B].
    """

    observations: ObservationCodec
    actions: ActionCodec
    state_size: int = 0
    terminal_on_life_loss: bool = False
    rewards: Callable[[Array, Array, Array], None] | None = None
