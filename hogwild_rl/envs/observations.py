"""How an environment's observations become rows of one array: images as they are, the rest flat."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from hogwild_rl import UserError
from hogwild_rl.envs.actions import one_line

Array = np.ndarray[Any, Any]

_CHANNELS_AT_MOST = 16  # what is longer is a side of the picture


@dataclasses.dataclass(frozen=True)
class Image:
    """A picture of bytes in 0..255.

    Attributes:
        shape: as the environment gives it: [H, W], [H, W, C], [C, H, W] or a stack of [H, W, C].
        channels_first: whether channels are the first axis.
    """

    shape: tuple[int, ...]
    channels_first: bool

    @property
    def chw(self) -> tuple[int, int, int]:
        """Channels, height and width, the frames of a stack as channels."""
        if len(self.shape) == 2:
            return 1, *self.shape
        if len(self.shape) == 4:
            frames, height, width, channels = self.shape
            return frames * channels, height, width
        first, middle, last = self.shape
        return (first, middle, last) if self.channels_first else (last, first, middle)


@dataclasses.dataclass(frozen=True)
class ObservationCodec:
    """Observations as rows of one array, which rollouts keep and networks take.

    A single image stays as it is, in bytes. All else is flattened to float32, as gymnasium's
    `spaces.flatten` does it: Discrete and MultiDiscrete become one-hot, Dict and Tuple their parts
    side by side; images among the parts come last, so that a network can treat them apart.

    Attributes:
        space: of one environment.
        shape: of a row, *O.
        dtype: of a row, uint8 or float32.
        vector: how many numbers at a row's start belong to no image; 0 for a single image.
        images: in the order in which they follow.
        order: numbers of the space's parts as they lie in a row.
    """

    space: Space[Any]
    shape: tuple[int, ...]
    dtype: type[np.generic]
    vector: int
    images: tuple[Image, ...]
    order: tuple[int, ...] = (0,)

    @classmethod
    def of(cls, space: Space[Any]) -> "ObservationCodec":
        """The codec for a space.

        Raises:
            UserError: the space is not supported; the message names it.
        """
        picture = as_image(space)
        if picture is not None:
            return cls(space, picture.shape, np.uint8, 0, (picture,))
        parts = list(leaves(space))
        pictures = [as_image(part) for part in parts]
        images = tuple(picture for picture in pictures if picture is not None)
        vector = sum(
            _size(part) for part, seen in zip(parts, pictures, strict=True) if seen is None
        )
        pixels = sum(math.prod(image.shape) for image in images)
        order = sorted(range(len(parts)), key=lambda i: pictures[i] is not None)  # stable
        return cls(space, (vector + pixels,), np.float32, vector, images, tuple(order))

    def rows(self, observations: Any) -> Array:
        """[B, *O] from a batch of observations, as vector environments give them."""
        if isinstance(self.space, spaces.Box):
            array: Array = np.asarray(observations)
            return array.reshape(len(array), *self.shape)
        parts = list(_parts(self.space, observations))
        return np.concatenate([_flat(*parts[i]) for i in self.order], axis=1)

    def row(self, observation: Any) -> Array:
        """One observation, [*O]."""
        row: Array = self.rows(batch_of_one(self.space, observation))[0]
        return row

    def batched(self, observations: Any) -> bool:
        """Whether these are a batch of observations, and not one.

        Raises:
            UserError: they are neither.
        """
        kinds = set()
        for space, given in _parts(self.space, observations):
            got, wanted = np.shape(given), space.shape
            if wanted not in (got, got[1:]):
                raise UserError(f"observations must have shape {wanted}, or B of these, got {got}")
            kinds.add(got != wanted)
        if len(kinds) > 1:
            raise UserError("observations must be one or a batch in all their parts, got a mixture")
        return kinds == {True}


def as_image(space: Space[Any]) -> Image | None:
    """What a space is as an image, or None: bytes in 0..255 with two spatial axes."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return None
    shape, whole = space.shape, bool((space.low == 0).all() and (space.high == 255).all())
    if not whole or len(shape) not in (2, 3, 4):
        return None
    if len(shape) == 3:
        channels_first = shape[0] < shape[2]
        if min(shape[0], shape[2]) > _CHANNELS_AT_MOST:
            return None
        return Image(shape, channels_first)
    if len(shape) == 4 and shape[3] > _CHANNELS_AT_MOST:
        return None
    return Image(shape, channels_first=False)


def batch_of_one(space: Space[Any], observation: Any) -> Any:
    """One observation as a batch, as vector environments give them."""
    if isinstance(space, spaces.Dict):
        return {key: batch_of_one(part, observation[key]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        parts = zip(space.spaces, observation, strict=True)
        return tuple(batch_of_one(part, given) for part, given in parts)
    return np.asarray(observation)[None]


def leaves(space: Space[Any]) -> Iterator[Space[Any]]:
    """The spaces that a space is composed of, in gymnasium's order."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        composed: Mapping[str, Space[Any]] | Sequence[Space[Any]] = space.spaces
        parts = composed.values() if isinstance(composed, Mapping) else composed
        for part in parts:
            yield from leaves(part)
    else:
        yield space


def _parts(space: Space[Any], batch: Any) -> Iterator[tuple[Space[Any], Any]]:
    """The spaces that a space is composed of, each with its part of a batch."""
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
        f"observation space {one_line(space)} is not supported: Box, Discrete, MultiDiscrete, "
        "MultiBinary, and Dict and Tuple of these are"
    )


def _flat(space: Space[Any], batch: Any) -> Array:
    """[B, size] float32 from a batch of one uncomposed space."""
    if isinstance(space, spaces.Discrete):
        return _one_hot(np.asarray(batch)[:, None] - space.start, np.array([space.n]))
    if isinstance(space, spaces.MultiDiscrete):
        choices = np.asarray(batch) - space.start
        return _one_hot(choices.reshape(len(choices), -1), space.nvec.ravel())
    array = np.asarray(batch)
    return array.reshape(len(array), -1).astype(np.float32, copy=False)


def _one_hot(choices: Array, sizes: Array) -> Array:
    """[B, Σn] float32 from choices [B, N], each below its size in [N]."""
    B = len(choices)
    hot = np.zeros((B, int(sizes.sum())), dtype=np.float32)
    offsets = np.cumsum(sizes) - sizes
    hot[np.arange(B)[:, None], choices + offsets] = 1
    return hot
