"""Which environments gave numbers that are not finite."""

import math
from typing import Any

import numpy as np


def broken(rewards: Any, observations: Any) -> list[int]:
    """Their numbers, in ascending order.

    Args:
        rewards: of floats, [T, B].
        observations: of floats or bytes, [T, B, *O].

    >>> broken(np.array([[0.0, np.inf], [1.0, 2.0]]), np.zeros((2, 2, 3)))
    [1]
    """
    if _sound(rewards) and _sound(observations):
        return []
    sound = np.isfinite(rewards).all(axis=0)
    sound &= np.isfinite(observations).all(axis=(0, *range(2, observations.ndim)))
    numbers: list[int] = np.flatnonzero(~sound).tolist()
    return numbers


def _sound(values: Any) -> bool:
    """Whether all are finite, without an array of answers: it is asked with every rollout."""
    if values.dtype.kind != "f":
        return True
    return math.isfinite(values.min()) and math.isfinite(values.max())
