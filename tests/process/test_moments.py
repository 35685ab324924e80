"""Processes that add to the same moments: every reading whole, the end exact, kills harmless."""

import os
import time

import numpy as np
import torch

from hogwild_rl.hogwild.processes import Workers
from hogwild_rl.hogwild.running_moments import MergedMoments, RunningMoments
from tests.process import moments_jobs

READINGS = 200  # with different counts, so that workers have written between them


def test_eight_workers_are_read_whole_all_the_time_and_add_up_exactly() -> None:
    moments = RunningMoments(8, moments_jobs.SIZE)
    counts = [0.0]
    deadline = time.monotonic() + 60
    with Workers(moments_jobs.add, (moments,), 8, seed=0) as crew:
        while len(set(counts)) < READINGS or not rows(moments)[:, 0].all():
            assert time.monotonic() < deadline, "workers do not add"
            assert crew.wait(0.0) == []
            merged = moments.merged()
            counts.append(merged.count)
            if merged.count > 0:
                assert_whole(merged)
            os.sched_yield()  # with fewer cores than processes, workers stop wherever they are
        assert crew.stop(timeout_s=30) == []
    assert counts == sorted(counts)
    data = np.concatenate([added(worker, int(row[0])) for worker, row in enumerate(rows(moments))])
    merged = moments.merged()
    assert merged.count == len(data)
    halves = slice(None, None, moments_jobs.HALF)
    assert_whole(merged)
    np.testing.assert_allclose(merged.mean[halves], data.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(merged.variance[halves], data.var(axis=0), rtol=1e-6)


def assert_whole(merged: MergedMoments) -> None:
    """All columns of a half agree, and E[x²] = Var[x] + E[x]²."""
    for array in (merged.mean, merged.variance):
        halves = array.reshape(2, moments_jobs.HALF)
        assert (np.ptp(halves, axis=1) <= 1e-9 * halves[:, 0]).all()
    expected = merged.variance[0] + merged.mean[0] ** 2
    np.testing.assert_allclose(merged.mean[-1], expected, rtol=1e-9)


def added(worker: int, count: int) -> np.ndarray:
    """What a worker has added if that many vectors are a number of whole batches, [count, 2]."""
    batches: list[np.ndarray] = []
    left = count
    while left > 0:
        batches.append(moments_jobs.values(worker, len(batches)))
        left -= len(batches[-1])
    assert left == 0
    return np.concatenate(batches)


def test_workers_killed_while_they_add_leave_whole_rows_and_go_on() -> None:
    workers, lives, size = 4, 5, 20_000
    moments = RunningMoments(workers, size)
    for life in range(lives):
        before = rows(moments)[:, 0]
        deadline = time.monotonic() + 60
        with Workers(
            moments_jobs.count_up, (moments,), workers, seed=0, restart_index=life
        ) as crew:
            while (rows(moments)[:, 0] < before + 20).any():
                assert time.monotonic() < deadline, "workers do not add"
                assert crew.wait(0.0) == []
            crew.kill()  # by SIGKILL, wherever they are
        for count, *sums in rows(moments).tolist():
            # 0, 1, ..., n − 1 have mean (n − 1) / 2 and m2 n (n² − 1) / 12.
            np.testing.assert_allclose(sums[:size], (count - 1) / 2, rtol=1e-9)
            np.testing.assert_allclose(sums[size:], count * (count**2 - 1) / 12, rtol=1e-9)
    assert (rows(moments)[:, 0] >= 20 * lives).all()


def rows(moments: RunningMoments) -> torch.Tensor:
    """All rows, [workers, 1 + 2 size]."""
    return torch.stack([moments.row_state(worker) for worker in range(len(moments))])
