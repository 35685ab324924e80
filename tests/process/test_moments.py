"""Tests of RunningMoments with concurrent processes: consistent reads, exact totals, kills."""

import os
import time

import numpy as np
import torch

from hogwild_rl.hogwild.processes import Workers
from hogwild_rl.hogwild.running_moments import MergedMoments, RunningMoments
from tests.process import moments_jobs

READINGS = 200  # with distinct counts, so that workers have written between them


def test_concurrent_updates_give_consistent_reads_and_exact_totals() -> None:
    moments = RunningMoments(8, moments_jobs.SIZE)
    counts = [0.0]
    deadline = time.monotonic() + 60
    with Workers(moments_jobs.add, (moments,), 8, seed=0) as writers:
        while len(set(counts)) < READINGS or not rows(moments)[:, 0].all():
            assert time.monotonic() < deadline, "workers do not add"
            assert writers.wait(0.0) == []
            merged = moments.merged()
            counts.append(merged.count)
            if merged.count > 0:
                assert_consistent(merged)
            os.sched_yield()  # with fewer cores than processes, workers are preempted at any point
        assert writers.stop(timeout_s=30) == []
    assert counts == sorted(counts)
    data = np.concatenate([added(worker, int(row[0])) for worker, row in enumerate(rows(moments))])
    merged = moments.merged()
    assert merged.count == len(data)
    columns = slice(None, None, moments_jobs.HALF)
    assert_consistent(merged)
    np.testing.assert_allclose(merged.mean[columns], data.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(merged.variance[columns], data.var(axis=0), rtol=1e-6)


def assert_consistent(merged: MergedMoments) -> None:
    """Checks that all columns of a half are equal and E[x²] = Var[x] + E[x]²."""
    for array in (merged.mean, merged.variance):
        halves = array.reshape(2, moments_jobs.HALF)
        assert (np.ptp(halves, axis=1) <= 1e-9 * halves[:, 0]).all()
    expected = merged.variance[0] + merged.mean[0] ** 2
    np.testing.assert_allclose(merged.mean[-1], expected, rtol=1e-9)


def added(worker: int, count: int) -> np.ndarray:
    """The first `count` vectors added by a worker, which must be whole batches, [count, 2]."""
    batches: list[np.ndarray] = []
    left = count
    while left > 0:
        batches.append(moments_jobs.values(worker, len(batches)))
        left -= len(batches[-1])
    assert left == 0
    return np.concatenate(batches)


def test_workers_killed_during_updates_leave_consistent_rows() -> None:
    workers, restarts, size = 4, 5, 20_000
    moments = RunningMoments(workers, size)
    for restart in range(restarts):
        before = rows(moments)[:, 0]
        deadline = time.monotonic() + 60
        with Workers(
            moments_jobs.count_up, (moments,), workers, seed=0, restart_index=restart
        ) as writers:
            while (rows(moments)[:, 0] < before + 20).any():
                assert time.monotonic() < deadline, "workers do not add"
                assert writers.wait(0.0) == []
            writers.kill()  # SIGKILL at any point
        for count, *sums in rows(moments).tolist():
            # 0, 1, ..., n − 1 have mean (n − 1) / 2 and m2 n (n² − 1) / 12.
            np.testing.assert_allclose(sums[:size], (count - 1) / 2, rtol=1e-9)
            np.testing.assert_allclose(sums[size:], count * (count**2 - 1) / 12, rtol=1e-9)
    assert (rows(moments)[:, 0] >= 20 * restarts).all()


def rows(moments: RunningMoments) -> torch.Tensor:
    """All rows, [workers, 1 + 2 size]."""
    return torch.stack([moments.row_state(worker) for worker in range(len(moments))])
