"""Tests of RunningMoments: exact values, atomic rows and checkpoints."""

import io
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from hogwild_rl.hogwild import running_moments
from hogwild_rl.hogwild.running_moments import RunningMoments


def assert_equals_numpy(moments: RunningMoments, data: np.ndarray) -> None:
    """Asserts that the merged moments equal NumPy's over all data."""
    merged = moments.merged()
    assert merged.count == len(data)
    np.testing.assert_allclose(merged.mean, data.mean(axis=0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(merged.variance, data.var(axis=0, dtype=np.float64), rtol=1e-6)


def filled(workers: int, size: int, seed: int = 0) -> tuple[RunningMoments, np.ndarray]:
    """Moments with three batches per worker, and all their data, [N, size]."""
    rng = np.random.default_rng(seed)
    moments = RunningMoments(workers, size)
    batches = []
    for index in range(3 * workers):
        batches.append(rng.normal(3 * index, 1 + index, (5 + index, size)))
        moments.writer(index % workers).add(batches[-1])
    return moments, np.concatenate(batches)


@pytest.mark.parametrize("offset", [0.0, -30.0, 1e4])
@pytest.mark.parametrize("size", [1, 8, 31, 32, 400])
def test_merged_rows_equal_the_moments_of_all_data(offset: float, size: int) -> None:
    """Eight workers, batches of different size, and means of up to 10,000 standard deviations."""
    rng = np.random.default_rng(size)
    moments = RunningMoments(8, size)
    writers = [moments.writer(worker) for worker in range(8)]
    batches = []
    for index in range(60):
        lengths = rng.integers(1, 200)
        batches.append((offset + rng.standard_normal((lengths, size))).astype(np.float32))
        writers[index**2 % 7].add(batches[-1])  # uneven; some workers add none
    assert_equals_numpy(moments, np.concatenate(batches))


@pytest.mark.parametrize(("length", "size"), [(150_000, 1), (20_000, 17), (400, 400), (3, 70_000)])
def test_large_batches_equal_one_pass(length: int, size: int) -> None:
    """Batches of several blocks with a partial last one, and vectors larger than a block."""
    rng = np.random.default_rng(0)
    batch = rng.normal(1e4, 1, (length, size)) + np.linspace(0, 50, length)[:, None]
    moments = RunningMoments(1, size)
    moments.writer(0).add(batch)
    assert_equals_numpy(moments, batch)


def test_hand_computed_values() -> None:
    """1, 2 and 6 in one row and 7 in another: mean 4, variance (9 + 4 + 4 + 9) / 4."""
    moments = RunningMoments(2, 1)
    moments.writer(0).add([[1], [2], [6]])
    moments.writer(1).add([[7]])
    merged = moments.merged()
    assert (merged.count, merged.mean.tolist(), merged.variance.tolist()) == (4, [4], [6.5])
    assert moments.row_state(0).tolist() == [3, 3, 14]
    assert moments.row_state(1).tolist() == [1, 7, 0]


@pytest.mark.parametrize("dtype", ["u1", "?", "i8", "f2", "f4", "f8"])
def test_batches_of_all_dtypes_are_added_in_float64_and_not_modified(dtype: str) -> None:
    batch = np.random.default_rng(0).integers(0, 256, (300, 3)).astype(dtype)
    before = batch.copy()
    moments = RunningMoments(1, 3)
    moments.writer(0).add(batch)
    assert_equals_numpy(moments, before.astype(np.float64))
    assert np.array_equal(batch, before)


def test_slices_and_tensors_are_accepted_as_batches() -> None:
    data = np.random.default_rng(0).standard_normal((12, 6))
    moments = RunningMoments(1, 3)
    moments.writer(0).add(data[::2, 1::2])
    moments.writer(0).add(torch.from_numpy(data[1::2, 1::2]))
    assert_equals_numpy(moments, data[:, 1::2])


def test_initial_mean_is_0_and_variance_1() -> None:
    """Empty batches do not change them."""
    moments = RunningMoments(3, 2)
    moments.writer(1).add(np.empty((0, 2), dtype=np.float32))
    merged = moments.merged()
    assert (merged.count, merged.mean.tolist(), merged.variance.tolist()) == (0, [0, 0], [1, 1])
    assert moments.row_state(1).tolist() == [0] * 5


def test_empty_batch_has_no_effect() -> None:
    moments, data = filled(2, 4)
    moments.writer(0).add(np.empty((0, 4)))
    assert_equals_numpy(moments, data)


def test_constant_data_has_variance_0() -> None:
    """The variance is not negative after many batches."""
    moments = RunningMoments(2, 1)
    for index in range(100):
        moments.writer(index % 2).add(np.full((7, 1), 0.1))
    assert 0 <= moments.merged().variance[0] < 1e-28
    assert moments.merged().mean[0] == pytest.approx(0.1, rel=1e-12)


def test_new_writer_continues_its_row() -> None:
    """A restarted worker adds to its row."""
    data = np.random.default_rng(0).standard_normal((30, 2))
    moments = RunningMoments(2, 2)
    for part in np.split(data, 3):
        moments.writer(1).add(part)
    assert moments.row_state(0)[0] == 0
    assert_equals_numpy(moments, data)


def test_results_do_not_change_with_later_batches() -> None:
    moments, _ = filled(2, 3)
    merged, row, state = moments.merged(), moments.row_state(0), moments.state()
    before = [merged.mean.copy(), merged.variance.copy(), row.clone(), state["m2"].clone()]
    for _ in range(2):
        moments.writer(0).add(np.ones((50, 3)))
    after = [merged.mean, merged.variance, row, state["m2"]]
    assert all(
        np.array_equal(old, new)
        for old, new in zip(map(np.asarray, before), map(np.asarray, after), strict=True)
    )


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_state_is_restored_for_another_number_of_workers(workers: int) -> None:
    """The state passes through torch.load(weights_only=True); then a worker adds a batch."""
    moments, data = filled(3, 5)
    file = io.BytesIO()
    torch.save(moments.state(), file)
    file.seek(0)
    resumed = RunningMoments(workers, 5)
    resumed.restore(torch.load(file, weights_only=True))
    assert_equals_numpy(resumed, data)
    more = np.random.default_rng(9).normal(-5, 2, (40, 5))
    resumed.writer(workers - 1).add(more)
    assert_equals_numpy(resumed, np.concatenate([data, more]))
    assert resumed.row_state(workers - 1)[0] == 40, "the restored state must be in no worker's row"


def test_empty_state_is_restored() -> None:
    moments = RunningMoments(2, 2)
    moments.restore(RunningMoments(1, 2).state())
    assert moments.merged().count == 0
    assert moments.merged().variance.tolist() == [1, 1]


def test_restore_replaces_the_previous_state() -> None:
    """Restoring an earlier state of the same moments counts nothing twice."""
    moments, data = filled(3, 2)
    state = moments.state()
    for worker in range(3):
        moments.writer(worker).add(np.full((20, 2), 100.0))
    for _ in range(2):
        moments.restore(state)
        assert_equals_numpy(moments, data)


def test_rows_of_two_ranks_merge_to_the_moments_of_both() -> None:
    """Each rank sets the other's row three times; both read the same moments."""
    rng = np.random.default_rng(0)
    ranks = [RunningMoments(2, 3), RunningMoments(2, 3)]
    data = np.empty((0, 3))
    for _ in range(3):
        for rank in range(2):
            batch = rng.normal(10 * rank, 1, (4 + rank, 3))
            ranks[rank].writer(rank).add(batch)
            data = np.concatenate([data, batch])
        rows = [ranks[rank].row_state(rank) for rank in range(2)]
        assert [(row.dtype, tuple(row.shape)) for row in rows] == [(torch.float64, (7,))] * 2
        ranks[0].set_row(1, rows[1])
        ranks[1].set_row(0, rows[0])
        for moments in ranks:
            assert_equals_numpy(moments, data)


def test_pickled_copy_is_equal() -> None:
    """Plain pickle copies the memory; tests/process covers sharing."""
    moments, data = filled(2, 9)
    copy = pickle.loads(pickle.dumps(moments))
    assert (len(copy), copy.size) == (2, 9)
    assert_equals_numpy(copy, data)
    copy.writer(0).add(data)
    assert_equals_numpy(copy, np.concatenate([data, data]))


@pytest.mark.parametrize("shape", [(3,), (4, 1), (1, 3, 1), (4, 4), (0,), (0, 2)])
def test_batch_of_another_shape_raises(shape: tuple[int, ...]) -> None:
    """No batch is broadcast or added."""
    moments = RunningMoments(1, 3)
    with pytest.raises(ValueError, match=r"must have shape \[N, 3\], got \["):
        moments.writer(0).add(np.ones(shape))
    assert moments.merged().count == 0


@pytest.mark.parametrize("worker", [-1, 2])
def test_worker_out_of_range_raises(worker: int) -> None:
    """-1 is not the last row, which has the restored state."""
    moments = RunningMoments(2, 1)
    message = f"between 0 and 1, got {worker}"
    with pytest.raises(ValueError, match=message):
        moments.writer(worker)
    with pytest.raises(ValueError, match=message):
        moments.row_state(worker)
    with pytest.raises(ValueError, match=message):
        moments.set_row(worker, torch.zeros(3))


def test_invalid_sizes_raise() -> None:
    """No workers, no elements, or a row or state of another size."""
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        RunningMoments(0, 1)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        RunningMoments(1, 0)
    with pytest.raises(ValueError, match=r"shape \[5\], got \[3\]"):
        RunningMoments(1, 2).set_row(0, torch.zeros(3))
    with pytest.raises(ValueError, match="size 2, got 1, 1"):
        RunningMoments(1, 2).restore(RunningMoments(1, 1).state())


@pytest.mark.parametrize("size", [1, 3, 4, 400])
def test_sequence_numbers_and_copies_have_their_own_cache_lines(size: int) -> None:
    """Checks the sequence number and both copies of every row."""
    moments = RunningMoments(3, size)
    starts = [address(moments._sequences[row : row + 1]) for row in range(4)]
    starts += [address(moments._copies[row, copy]) for row in range(4) for copy in range(2)]
    assert [start % 64 for start in starts] == [0] * 12
    assert len(set(starts)) == 12


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


class Killed(BaseException):
    """Simulated kill of a writer."""


@contextmanager
def at_every_instruction(callback: Callable[[int], None]) -> Iterator[None]:
    """Calls `callback` with 0, 1, ... before each bytecode instruction of `running_moments`."""
    count = -1

    def trace(frame: types.FrameType, event: str, _: object) -> object:
        nonlocal count
        if frame.f_code.co_filename != running_moments.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            count += 1
            callback(count)
        return trace

    before = sys.gettrace()
    # Since Python 3.12, settrace traces opcodes only if a frame has requested them before.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


BATCHES = [np.array([[1.0, -5.0], [3.0, 0.0]]), np.array([[10.0, 4.0]] * 3), np.full((9, 2), 70.0)]


def row_after(batches: int) -> list[float]:
    """Row after the first n of BATCHES."""
    moments = RunningMoments(1, 2)
    for batch in BATCHES[:batches]:
        moments.writer(0).add(batch)
    return moments.row_state(0).tolist()


@pytest.mark.parametrize("already", [0, 1, 2])
def test_reader_between_any_instructions_of_a_writer_gets_a_whole_row(already: int) -> None:
    """The row is that before the batch and, from one instruction on, that after it."""
    moments = RunningMoments(1, 2)
    writer = moments.writer(0)
    for batch in BATCHES[:already]:
        writer.add(batch)
    rows: list[list[float]] = []
    with at_every_instruction(lambda _: rows.append(moments.row_state(0).tolist())):
        writer.add(BATCHES[already])
    assert len(rows) > 100
    switch = rows.index(row_after(already + 1))
    assert rows == [row_after(already)] * switch + [row_after(already + 1)] * (len(rows) - switch)


def test_writer_killed_at_any_instruction_leaves_a_whole_row() -> None:
    """The batch is in the row or not, and the next writer continues from there."""
    found = []
    for instruction in range(10_000):
        moments = RunningMoments(1, 2)
        moments.writer(0).add(BATCHES[0])
        writer = moments.writer(0)

        def kill(now: int, instruction: int = instruction) -> None:
            if now == instruction:
                raise Killed

        try:
            with at_every_instruction(kill):
                writer.add(BATCHES[1])
        except Killed:
            row = moments.row_state(0).tolist()
            assert row in (row_after(1), row_after(2))
            found.append(row)
            count = 2 if row == row_after(2) else 1
            moments.writer(0).add(BATCHES[count])
            assert moments.row_state(0).tolist() == row_after(count + 1)
        else:
            break
    assert row_after(1) in found
    assert row_after(2) in found


@pytest.mark.parametrize("batches", [1, 2])
def test_writer_between_any_instructions_of_a_reader_gives_a_whole_row(batches: int) -> None:
    """The writer adds whole batches and half of the next one before the reader continues."""
    found = []
    for instruction in range(10_000):
        moments = RunningMoments(1, 2)
        writer = moments.writer(0)
        writer.add(BATCHES[0])
        interrupted = False

        def write(
            now: int,
            instruction: int = instruction,
            moments: RunningMoments = moments,
            writer: running_moments.RunningMomentsWriter = writer,
        ) -> None:
            nonlocal interrupted
            if now == instruction:
                interrupted = True
                for batch in BATCHES[1 : 1 + batches]:
                    writer.add(batch)
                row, sequence = writer._row, moments._sequences[writer._row]
                moments._copies[row, (sequence + 1) & 1] = np.nan

        with at_every_instruction(write):
            row = moments.row_state(0).tolist()
        if not interrupted:
            break
        assert row in (row_after(1), row_after(1 + batches))
        found.append(row)
    assert row_after(1) in found
    assert row_after(1 + batches) in found
