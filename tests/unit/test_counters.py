"""Tests of the workers' counters: counts, staleness, timings and recent episodes."""

import time

import numpy as np
import pytest

from hogwild_rl.hogwild.counters import (
    EPISODES_KEPT,
    EPISODES_READABLE,
    PHASES,
    STALENESS_BINS,
    Counters,
)


def returns_of(counters: Counters, count: int) -> list[float]:
    """Returns the returns of the newest episodes, oldest first."""
    return counters.recent_episodes(count)["return"].tolist()  # type: ignore[no-any-return]


def test_counters_are_initially_zero() -> None:
    counters = Counters(3)
    assert len(counters) == 3
    fields = ("steps", "updates", "dropped", "episode_count")
    assert [counters.total(field) for field in fields] == [0, 0, 0, 0]
    assert counters.seconds() == dict.fromkeys(PHASES, 0.0)
    assert counters.staleness_histogram().tolist() == [0] * STALENESS_BINS
    assert len(counters.recent_episodes(10)) == 0


def test_totals_are_sums_over_workers() -> None:
    """Each worker writes its own row; a total is the sum over rows."""
    counters = Counters(3)
    writers = [counters.writer(worker) for worker in range(3)]
    for worker, writer in enumerate(writers):
        writer.add_rollout(10 + worker, [(1.0, 5)] * worker)
        for _ in range(worker + 1):
            writer.add_update(writer.total_updates())
        for _ in range(2 * worker):
            writer.add_dropped()
    fields = ("steps", "updates", "dropped", "episode_count")
    assert [counters.total(field) for field in fields] == [33, 6, 6, 3]
    assert counters.rows["steps"].tolist() == [10, 11, 12]
    assert counters.rows["updates"].tolist() == [1, 2, 3]
    assert counters.rows["dropped"].tolist() == [0, 2, 4]
    assert counters.rows["episode_count"].tolist() == [0, 1, 2]
    assert [writer.total_updates() for writer in writers] == [6, 6, 6]


def test_a_new_writer_continues_its_row() -> None:
    """A restarted worker adds to the counts of its row."""
    counters = Counters(2)
    for _ in range(2):
        counters.writer(1).add_rollout(5, [(1.0, 5)])
    assert counters.total("steps") == 10
    assert counters.total("episode_count") == 2


def test_a_lap_is_a_heartbeat() -> None:
    """heartbeat_s is the time of the newest lap, initially the time of the start."""
    counters = Counters(1)
    times = [time.monotonic()]
    writer = counters.writer(0)
    times += [float(counters.rows["heartbeat_s"][0]), time.monotonic()]
    writer.lap("env")
    times += [float(counters.rows["heartbeat_s"][0]), time.monotonic()]
    assert times == sorted(times)


def test_an_episode_has_return_length_step_and_time() -> None:
    """Its step is the worker's step count at the end of the episode."""
    counters = Counters(2)
    writer = counters.writer(1)
    writer.add_rollout(7, [])
    before_s = time.monotonic()
    writer.add_rollout(4, [(2.5, 11)])
    (episode,) = counters.recent_episodes(1)
    assert (episode["return"], episode["length"], episode["step"]) == (2.5, 11, 11)
    assert before_s <= episode["time_s"] <= time.monotonic()


def test_recent_episodes_of_several_writers_are_sorted_by_time() -> None:
    """The newest episodes of all rows are merged, oldest first."""
    counters = Counters(3)
    writers = [counters.writer(worker) for worker in range(3)]
    for number, worker in enumerate([2, 0, 0, 1, 2, 1, 0, 2, 2, 1]):
        writers[worker].add_rollout(1, [(float(number), 1)])
    assert returns_of(counters, EPISODES_READABLE) == [float(number) for number in range(10)]
    assert returns_of(counters, 4) == [6.0, 7.0, 8.0, 9.0]
    assert returns_of(counters, 1) == [9.0]


@pytest.mark.parametrize("more", [0, 1, 50, 2 * EPISODES_KEPT + 3])
def test_a_full_row_contains_the_newest_episodes(more: int) -> None:
    """A row overwrites its oldest episodes after EPISODES_KEPT, but still counts them."""
    counters = Counters(1)
    total = EPISODES_KEPT + more
    counters.writer(0).add_rollout(total, [(float(number), 1) for number in range(total)])
    assert counters.total("episode_count") == total
    newest = [float(number) for number in range(total)]
    assert returns_of(counters, EPISODES_READABLE) == newest[-EPISODES_READABLE:]
    assert returns_of(counters, 3) == newest[-3:]


def test_full_and_sparse_rows_are_merged_by_time() -> None:
    """One row has wrapped around, the other has few episodes."""
    counters = Counters(2)
    busy, idle = counters.writer(0), counters.writer(1)
    idle.add_rollout(1, [(-1.0, 1)])
    busy.add_rollout(1, [(float(number), 1) for number in range(200)])
    idle.add_rollout(1, [(-2.0, 1)])
    busy.add_rollout(1, [(200.0, 1)])
    assert returns_of(counters, 4) == [198.0, 199.0, -2.0, 200.0]
    assert -1.0 not in returns_of(counters, EPISODES_READABLE)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_recent_episodes_returns_the_requested_number(count: int) -> None:
    counters = Counters(1)
    counters.writer(0).add_rollout(5, [(1.0, 1)] * 5)
    assert len(counters.recent_episodes(count)) == count


@pytest.mark.parametrize("count", [-1, 0, EPISODES_READABLE + 1])
def test_recent_episodes_rejects_a_number_out_of_range(count: int) -> None:
    """The message has the number."""
    counters = Counters(2)
    assert len(counters.recent_episodes(EPISODES_READABLE)) == 0
    with pytest.raises(ValueError, match=rf"{EPISODES_READABLE}, got {count}$"):
        counters.recent_episodes(count)


def test_staleness_counts_updates_of_other_workers_between_pull_and_step() -> None:
    """It is 0 for a single worker, and 3 after three updates of other workers."""
    counters = Counters(3)
    writer, other, third = (counters.writer(worker) for worker in range(3))
    for _ in range(4):
        writer.add_update(writer.total_updates())
    pulled = writer.total_updates()
    other.add_update(other.total_updates())
    other.add_update(other.total_updates())
    third.add_update(third.total_updates())
    writer.add_update(pulled)
    assert counters.staleness_histogram()[:5].tolist() == [7, 0, 0, 1, 0]
    assert counters.rows["staleness_sum"].tolist() == [3, 0, 0]
    assert counters.rows["staleness_max"].tolist() == [3, 0, 0]
    assert counters.rows["staleness"][0][:4].tolist() == [4, 0, 0, 1]
    assert counters.total("updates") == 8


def test_the_last_staleness_bin_counts_all_larger_values() -> None:
    """Bin 62 counts 62 only, bin 63 all values from 63; sum and maximum are exact."""
    counters = Counters(2)
    writer, other = counters.writer(0), counters.writer(1)
    for staleness in (62, 63, 64, 200, 3):
        pulled = writer.total_updates()
        for _ in range(staleness):
            other.add_update(other.total_updates())
        writer.add_update(pulled)
    expected = np.zeros(STALENESS_BINS, dtype=np.int64)
    expected[[3, 62, 63]] = [1, 1, 3]
    assert counters.rows["staleness"][0].tolist() == expected.tolist()
    assert counters.staleness_histogram().sum() == counters.total("updates")
    assert counters.rows["staleness_sum"][0] == 62 + 63 + 64 + 200 + 3
    assert counters.rows["staleness_max"][0] == 200


@pytest.mark.parametrize("phase", PHASES)
def test_a_lap_adds_time_to_its_phase_only(phase: str) -> None:
    counters = Counters(2)
    counters.writer(1).lap(phase)
    assert [name for name, seconds in counters.seconds().items() if seconds > 0] == [phase]


def test_a_lap_divides_its_time_at_the_given_end_of_stepping() -> None:
    counters = Counters(1)
    writer = counters.writer(0)
    time.sleep(0.004)
    env_end_s = time.monotonic()
    time.sleep(0.002)
    writer.lap("act", env_end_s)
    until_s = time.monotonic()
    seconds = counters.seconds()
    assert seconds["env"] >= 0.004
    assert 0.002 <= seconds["act"] <= until_s - env_end_s
    assert seconds["learn"] == seconds["share"] == 0


def test_phases_sum_to_the_total_time() -> None:
    """The total time of a worker is from its start to its last lap."""
    counters = Counters(1)
    outer_start_s = time.perf_counter()
    writer = counters.writer(0)
    inner_start_s = time.perf_counter()
    for phase in PHASES * 50:
        writer.lap(phase)
    inner_end_s = time.perf_counter()
    writer.lap("env")
    outer_end_s = time.perf_counter()
    seconds = counters.seconds()
    assert set(seconds) == set(PHASES)
    assert min(seconds.values()) > 0
    total_s = sum(seconds.values())
    assert inner_end_s - inner_start_s - 1e-9 <= total_s <= outer_end_s - outer_start_s + 1e-9


def test_seconds_are_sums_over_workers() -> None:
    counters = Counters(3)
    for worker in range(3):
        counters.writer(worker).lap("learn")
    assert counters.seconds()["learn"] == pytest.approx(counters.rows["seconds"].sum(), rel=1e-12)
    assert (counters.rows["seconds"].sum(axis=1) > 0).all()


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_row_starts_on_its_own_cache_line(workers: int) -> None:
    """Row addresses are multiples of 64, and rows do not overlap."""
    counters = Counters(workers)
    addresses = [counters.rows[i : i + 1].__array_interface__["data"][0] for i in range(workers)]
    assert [address % 64 for address in addresses] == [0] * workers
    gaps = np.diff(addresses)
    assert (gaps >= counters.rows.dtype.itemsize).all()
