"""Observations in memory that processes share."""

import ctypes
import math
from multiprocessing import sharedctypes
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.vector.utils import batch_space, create_empty_array, iterate


class Observations:
    """A row of observations for each of B environments, without a lock: each row has one writer.

    A process that is started with it as an argument sees the same rows.

    Args:
        space: of one environment.
        num_envs: B.

    Attributes:
        arrays: as gymnasium batches them, [B, ...] each.
    """

    def __init__(self, space: Space[Any], num_envs: int) -> None:
        self._space, self._num_envs = space, num_envs
        self._buffers: list[Any] = []
        self.arrays = create_empty_array(space, num_envs, self._allocated)

    def _allocated(self, shape: tuple[int, ...], dtype: Any) -> "np.ndarray[Any, Any]":
        size = math.prod(shape) * np.dtype(dtype).itemsize
        self._buffers.append(sharedctypes.RawArray(ctypes.c_byte, size))
        return np.frombuffer(self._buffers[-1], dtype).reshape(shape)

    def __getstate__(self) -> tuple[Space[Any], int, list[Any]]:
        return self._space, self._num_envs, self._buffers

    def __setstate__(self, state: tuple[Space[Any], int, list[Any]]) -> None:
        self._space, self._num_envs, self._buffers = state
        buffers = iter(self._buffers)
        self.arrays = create_empty_array(
            self._space,
            self._num_envs,
            lambda shape, dtype: np.frombuffer(next(buffers), dtype).reshape(shape),
        )

    def write(self, b: int, observation: Any) -> None:
        """Puts an environment's observation into its row."""
        _put(self.arrays, b, observation)

    def clear(self, b: int) -> None:
        """Fills a row with zeros, whatever a process left there that was killed while it wrote."""
        nothing = create_empty_array(self._space, 1)
        self.write(b, next(iter(iterate(batch_space(self._space, 1), nothing))))


def _put(arrays: Any, b: int, observation: Any) -> None:
    if isinstance(arrays, np.ndarray):
        arrays[b] = observation
    elif isinstance(arrays, tuple):
        for array, part in zip(arrays, observation, strict=True):
            _put(array, b, part)
    else:
        for key, array in arrays.items():
            _put(array, b, observation[key])
