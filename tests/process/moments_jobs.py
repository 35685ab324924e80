"""Target functions of workers that update RunningMoments; partial writes are detectable."""

import itertools

import numpy as np

from hogwild_rl.hogwild.processes import Worker
from hogwild_rl.hogwild.running_moments import RunningMoments

HALF = 2048
SIZE = 2 * HALF


def values(worker: int, index: int) -> np.ndarray:
    """Batch `index` of a worker: columns x and x², [N, 2].

    Over whole batches E[x²] = Var[x] + E[x]². x grows with the index, so that a mixture of old and
    new values violates this equation.
    """
    rng = np.random.default_rng([worker, index])
    x = index + worker + rng.standard_normal((rng.integers(1, 6), 1))
    return np.concatenate([x, x**2], axis=1)


def add(worker: Worker, moments: RunningMoments) -> None:
    """Adds batches of vectors whose first half is x and whose second half is x²."""
    writer = moments.writer(worker.index)
    for index in itertools.count():
        writer.add(np.repeat(values(worker.index, index), HALF, axis=1))
        if worker.should_stop():
            return


def count_up(worker: Worker, moments: RunningMoments) -> None:
    """Adds 0, 1, 2, ... without end, continuing from the count of the killed process."""
    writer = moments.writer(worker.index)
    for number in itertools.count(int(moments.row_state(worker.index)[0])):
        writer.add(np.full((1, moments.size), number))
