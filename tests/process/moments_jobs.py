"""Workers that add batches in which a half-written row would show; a process finds them by name."""

import itertools

import numpy as np

from hogwild_rl.hogwild.processes import Worker
from hogwild_rl.hogwild.running_moments import RunningMoments

HALF = 2048
SIZE = 2 * HALF


def values(worker: int, index: int) -> np.ndarray:
    """What a worker adds as its batch of this index, x and x² side by side, [N, 2].

    Over any whole batches the mean of x² is Var[x] + E[x]². x grows with the index, so that old and
    new numbers do not fit together.
    """
    random = np.random.default_rng([worker, index])
    x = index + worker + random.standard_normal((random.integers(1, 6), 1))
    return np.concatenate([x, x**2], axis=1)


def add(worker: Worker, moments: RunningMoments) -> None:
    """Adds batches of vectors that are x in all of their first half and x² in their second."""
    writer = moments.writer(worker.index)
    for index in itertools.count():
        writer.add(np.repeat(values(worker.index, index), HALF, axis=1))
        if worker.stopping:
            return


def count_up(worker: Worker, moments: RunningMoments) -> None:
    """Adds 0, 1, 2, ... for ever, going on where the life before was killed."""
    writer = moments.writer(worker.index)
    for number in itertools.count(int(moments.row_state(worker.index)[0])):
        writer.add(np.full((1, moments.size), number))
