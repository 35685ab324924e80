"""A policy's actions as an environment takes them."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from gymnasium import spaces

from hogwild_rl import UserError

Array: TypeAlias = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class ActionCodec:
    """How a policy's actions become an environment's.

    A policy counts choices from 0, has one axis of N where an action is more than a single choice,
    and knows no bounds. Clipping is for the environment only: learning needs log π of what was
    drawn, so a rollout keeps the policy's actions.

        >>> codec = ActionCodec.of(spaces.Box(0, 10, (2, 1)), rescale=True)
        >>> codec.to_env(np.array([[0.5, -3]], np.float32)).tolist()
        [[[7.5], [0.0]]]

    Attributes:
        shape: of one action of the policy, () for Discrete and (N,) otherwise.
        dtype: of the policy's actions, np.float32 for a Box and np.int64 otherwise.
        to_env: gives the environment's actions, [B, *space.shape] in the space's dtype, for the
            policy's, [B, *shape]. It leaves its argument alone, and returns it where nothing is to
            be changed.
    """

    shape: tuple[int, ...]
    dtype: type[np.int64] | type[np.float32]
    to_env: Callable[[Array], Array]

    @classmethod
    def of(cls, space: gymnasium.Space[Any], rescale: bool = False) -> "ActionCodec":
        """The codec of an action space.

        Args:
            space: Discrete, MultiDiscrete, MultiBinary or a Box of floats.
            rescale: map −1..1 to low..high in each dimension of a Box that has both bounds.

        Raises:
            UserError: another space; the message names it.
        """
        if isinstance(space, spaces.Discrete):
            if space.start == 0 and space.dtype == np.int64:
                return cls((), np.int64, _unchanged)
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
            "Discrete, MultiDiscrete, MultiBinary and Box of floats are"
        )


def one_line(value: Any) -> str:
    """A space or an observation as printed, on one line also where its bounds fill several."""
    return " ".join(str(value).split())


def _choices(
    space: spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary, start: Array
) -> Callable[[Array], Array]:
    # In int64, whatever the space's dtype: unsigned starts would make floats of the sums.
    start = start.astype(np.int64)
    return functools.partial(_shift, start=start, shape=space.shape or (), dtype=space.dtype)


def _clipped(space: spaces.Box) -> Callable[[Array], Array]:
    low, high = space.low.reshape(-1), space.high.reshape(-1)
    return functools.partial(_clip, low=low, high=high, shape=space.shape, dtype=space.dtype)


def _rescaled(space: spaces.Box) -> Callable[[Array], Array]:
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    low = np.where(bounded, space.low, -1).astype(np.float64).reshape(-1)
    high = np.where(bounded, space.high, 1).astype(np.float64).reshape(-1)
    # Halved first: the bounds may be the largest floats there are.
    middle, radius = high / 2 + low / 2, high / 2 - low / 2
    return functools.partial(_rescale, middle=middle, radius=radius, clip=_clipped(space))


def _unchanged(actions: Array) -> Array:
    return actions


def _shift(actions: Array, start: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    return (actions + start).astype(dtype, copy=False).reshape(len(actions), *shape)


def _clip(actions: Array, low: Array, high: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    # Two ufuncs take 1.5 µs where np.clip takes 2.1.
    clipped = np.minimum(np.maximum(actions, low), high)
    return clipped.astype(dtype, copy=False).reshape(len(actions), *shape)


def _rescale(actions: Array, middle: Array, radius: Array, clip: Callable[[Array], Array]) -> Array:
    return clip(middle + radius * actions)
