"""Running mean and variance of the vectors of all workers, exact without a lock.

Each worker merges its batches into its own row and writes no other; readers merge the rows. A
worker killed at any instruction leaves its row in the state before or after a whole batch.

    n = n_a + n_b        δ = mean_b − mean_a
    mean = mean_a + δ n_b / n
    m2 = m2_a + m2_b + δ² n_a n_b / n        m2: sum of squared distances from the mean

Source: Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance", section 2.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from hogwild_rl.hogwild import shared_memory

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array: TypeAlias = NDArray[np.float64]

_WORDS = 8  # 64-bit words in a cache line; rows are aligned to it, as in counters
_BLOCK = 65_536  # numbers; as float64 they stay in a core's cache between the two passes
_NARROW = 32  # below this size contiguous columns are summed faster than rows


@dataclasses.dataclass(frozen=True)
class MergedMoments:
    """Moments of the vectors of all workers.

    Attributes:
        count: number of vectors.
        mean: [size], 0 if count is 0.
        variance: population variance m2 / count, [size]; 1 if count is 0.
    """

    count: float
    mean: "Array"
    variance: "Array"


class RunningMoments:
    """One row per worker in one shared segment, and row 0 for restored moments.

    Args:
        workers: number of workers, at least 1.
        size: length of the vectors, at least 1.

    Raises:
        ValueError: `workers` or `size` is below 1.
    """

    def __init__(self, workers: int, size: int) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        padded = -(-(1 + 2 * size) // _WORDS) * _WORDS
        self._memory = shared_memory.zeros(1 + workers, _WORDS + 2 * padded, dtype=torch.float64)
        self.size = size
        self._view()

    def _view(self) -> None:
        # Every row has two copies of (count, mean, m2). The parity of the row's sequence number
        # selects the newest; the writer fills the other copy, then increments the number. A reader
        # that finds the number unchanged has read a copy that was not being written.
        array: Array = self._memory.numpy()
        self._sequences = array.view(np.int64)[:, 0]
        self._copies = array[:, _WORDS:].reshape(len(array), 2, -1)[:, :, : 1 + 2 * self.size]
        assert np.shares_memory(self._copies, array)

    def __getstate__(self) -> tuple[Tensor, int]:
        return self._memory, self.size

    def __setstate__(self, state: tuple[Tensor, int]) -> None:
        self._memory, self.size = state
        self._view()

    def __len__(self) -> int:
        return len(self._sequences) - 1

    def writer(self, worker: int) -> "RunningMomentsWriter":
        """Writer of one worker's row, for use only in that worker's process."""
        return RunningMomentsWriter(self, worker)

    def merged(self) -> MergedMoments:
        """Count, mean and variance over consistent copies of all rows."""
        count, mean, m2 = self._sums()
        return MergedMoments(count, mean, m2 / count if count else np.ones(self.size))

    def _sums(self) -> "tuple[float, Array, Array]":
        rows = self._read(np.arange(len(self._sequences)))
        counts, means = rows[:, 0], rows[:, 1 : 1 + self.size]
        count = float(counts.sum())
        if not count:
            return 0.0, np.zeros(self.size), np.zeros(self.size)
        mean = np.einsum("r,rs->s", counts, means) / count
        means -= mean
        m2 = rows[:, 1 + self.size :].sum(axis=0) + np.einsum("r,rs,rs->s", counts, means, means)
        return count, mean, m2

    def _read(self, pending: "NDArray[np.int64]") -> "Array":
        """Consistent copies of the rows `pending`, [len(pending), 1 + 2 size]."""
        rows = np.empty((1 + len(self), 1 + 2 * self.size))
        requested = pending
        while len(pending):
            before = self._sequences[pending]
            rows[pending] = self._copies[pending, before & 1]
            # After even one increment, the writer may have been writing the copy just read.
            pending = pending[self._sequences[pending] != before]
        return rows[requested]

    def _write(self, row: int, count: float, mean: "Array", m2: "Array") -> None:
        sequence = int(self._sequences[row]) + 1
        spare = self._copies[row, sequence & 1]
        spare[0] = count
        spare[1 : 1 + self.size] = mean
        spare[1 + self.size :] = m2
        self._sequences[row] = sequence  # last: readers see complete copies only

    def _row_of(self, worker: int) -> int:
        if not 0 <= worker < len(self):
            raise ValueError(f"worker must lie between 0 and {len(self) - 1}, got {worker}")
        return 1 + worker

    def row_state(self, worker: int) -> Tensor:
        """One worker's count, mean and m2, [1 + 2 size], to be sent to another machine."""
        return torch.from_numpy(self._read(np.array([self._row_of(worker)]))[0])

    def set_row(self, worker: int, state: Tensor) -> None:
        """Replaces a row by the `row_state` of its writer on another machine, [1 + 2 size].

        Raises:
            ValueError: `state` has another shape.
        """
        if state.shape != (1 + 2 * self.size,):
            raise ValueError(
                f"the state must have shape [{1 + 2 * self.size}], got {list(state.shape)}"
            )
        values = state.numpy()
        mean, m2 = values[1 : 1 + self.size], values[1 + self.size :]
        self._write(self._row_of(worker), float(values[0]), mean, m2)

    def state(self) -> dict[str, Tensor]:
        """State for a checkpoint: count [], mean [size] and m2 [size] of all vectors.

        Also the rows that they are merged from, [1 + workers, 1 + 2 size].
        """
        count, mean, m2 = self._sums()
        return {
            "rows": torch.from_numpy(self._read(np.arange(len(self._sequences)))),
            "count": torch.tensor(count, dtype=torch.float64),
            "mean": torch.from_numpy(mean),
            "m2": torch.from_numpy(m2),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restores a `state` of any number of workers, before the workers start.

        With the same number of workers, every row is restored. Otherwise the merged moments go
        into row 0, and the rows of the workers are empty.

        Raises:
            ValueError: `state` has another size.
        """
        mean, m2 = state["mean"].numpy(), state["m2"].numpy()
        if mean.shape != (self.size,) or m2.shape != (self.size,):
            raise ValueError(f"mean and m2 must have size {self.size}, got {mean.size}, {m2.size}")
        rows = np.zeros((1 + len(self), 1 + 2 * self.size))
        if state["rows"].shape == rows.shape:
            rows = state["rows"].numpy()
        else:
            rows[0] = np.concatenate([[float(state["count"])], mean, m2])
        for row, values in enumerate(rows):
            self._write(row, values[0], *np.split(values[1:], 2))


class RunningMomentsWriter:
    """Writer of one worker's row. No other process may write that row."""

    def __init__(self, moments: RunningMoments, worker: int) -> None:
        self._moments = moments
        self._row = moments._row_of(worker)
        self._sequences, self._copies = moments._sequences, moments._copies[self._row]

    def add(self, batch: "ArrayLike") -> None:
        """Merges vectors into the row: all of them, or none if killed meanwhile.

        Args:
            batch: [N, size], N ≥ 0, real and finite: a NaN would stay in the row permanently.

        Raises:
            ValueError: `batch` has another shape.
        """
        vectors = np.asarray(batch)
        size = self._moments.size
        if vectors.ndim != 2 or vectors.shape[1] != size:
            raise ValueError(f"a batch must have shape [N, {size}], got {list(vectors.shape)}")
        if not len(vectors):
            return
        newest = self._copies[int(self._sequences[self._row]) & 1]
        merged = float(newest[0]), newest[1 : 1 + size], newest[1 + size :]
        length = max(1, _BLOCK // size)
        for start in range(0, len(vectors), length):
            merged = _merge(*merged, *_moments_of(vectors[start : start + length]))
        self._moments._write(self._row, *merged)


def _moments_of(vectors: "NDArray[Any]") -> "tuple[int, Array, Array]":
    """Count, mean [size] and m2 [size] of vectors [N, size], N ≥ 1, in two passes."""
    N, size = vectors.shape
    distances = np.array(vectors, dtype=np.float64, order="F" if size < _NARROW else "C")
    mean = np.add.reduce(distances, axis=0) / N
    distances -= mean
    # Not by BLAS: its sums depend on the number of threads.
    return N, mean, np.einsum("ns,ns->s", distances, distances)


def _merge(
    count_a: float, mean_a: "Array", m2_a: "Array", count_b: float, mean_b: "Array", m2_b: "Array"
) -> "tuple[float, Array, Array]":
    """Moments of the union of two sets, count_b ≥ 1; Chan et al. 1983."""
    count = count_a + count_b
    delta = mean_b - mean_a
    mean = mean_a + delta * (count_b / count)
    return count, mean, m2_a + m2_b + delta * delta * (count_a * count_b / count)
