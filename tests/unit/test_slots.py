"""One row per worker: counts, staleness, timings and recent episodes."""

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
    """The returns of the newest episodes, oldest first."""
    return [episode.episode_return for episode in counters.recent_episodes(count)]


def test_slots_start_empty() -> None:
    """Before any worker writes, every count is 0 and there is no episode."""
    counters = Counters(3)
    assert len(counters) == 3
    fields = ("steps", "updates", "dropped", "episode_count")
    assert [counters.total(field) for field in fields] == [0, 0, 0, 0]
    assert counters.seconds() == dict.fromkeys(PHASES, 0.0)
    assert counters.staleness_histogram().tolist() == [0] * STALENESS_BINS
    assert counters.recent_episodes(10) == []


def test_totals_add_the_rows_up() -> None:
    """Each worker counts in its own row, and readers see the sum."""
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


def test_a_new_writer_goes_on_in_its_row() -> None:
    """A worker that was restarted adds to what its row already counts."""
    counters = Counters(2)
    for _ in range(2):
        counters.writer(1).add_rollout(5, [(1.0, 5)])
    assert counters.total("steps") == 10
    assert counters.total("episode_count") == 2


def test_a_lap_is_a_heartbeat() -> None:
    """heartbeat_s is the time of the newest lap, or of the start before there is one."""
    counters = Counters(1)
    times = [time.monotonic()]
    writer = counters.writer(0)
    times += [float(counters.rows["heartbeat_s"][0]), time.monotonic()]
    writer.lap("env")
    times += [float(counters.rows["heartbeat_s"][0]), time.monotonic()]
    assert times == sorted(times)


def test_an_episode_holds_what_was_written() -> None:
    """Return, length, the steps of its worker, and a time between before and after."""
    counters = Counters(2)
    writer = counters.writer(1)
    writer.add_rollout(7, [])
    before_s = time.monotonic()
    writer.add_rollout(4, [(2.5, 11)])
    (episode,) = counters.recent_episodes(1)
    assert (episode.episode_return, episode.length, episode.step) == (2.5, 11, 11)
    assert before_s <= episode.time_s <= time.monotonic()


def test_recent_episodes_of_several_writers_come_in_order_of_time() -> None:
    """Episodes of all rows are merged oldest first, and only the newest are given."""
    counters = Counters(3)
    writers = [counters.writer(worker) for worker in range(3)]
    for number, worker in enumerate([2, 0, 0, 1, 2, 1, 0, 2, 2, 1]):
        writers[worker].add_rollout(1, [(float(number), 1)])
    assert returns_of(counters, EPISODES_READABLE) == [float(number) for number in range(10)]
    assert returns_of(counters, 4) == [6.0, 7.0, 8.0, 9.0]
    assert returns_of(counters, 1) == [9.0]


@pytest.mark.parametrize("more", [0, 1, 50, 2 * EPISODES_KEPT + 3])
def test_a_full_row_keeps_the_newest(more: int) -> None:
    """Beyond EPISODES_KEPT a row forgets its oldest episodes, and counts them still."""
    counters = Counters(1)
    total = EPISODES_KEPT + more
    counters.writer(0).add_rollout(total, [(float(number), 1) for number in range(total)])
    assert counters.total("episode_count") == total
    newest = [float(number) for number in range(total)]
    assert returns_of(counters, EPISODES_READABLE) == newest[-EPISODES_READABLE:]
    assert returns_of(counters, 3) == newest[-3:]


def test_full_and_sparse_rows_are_merged() -> None:
    """A row that wrapped around and one with few episodes are in order together."""
    counters = Counters(2)
    busy, idle = counters.writer(0), counters.writer(1)
    idle.add_rollout(1, [(-1.0, 1)])
    busy.add_rollout(1, [(float(number), 1) for number in range(200)])
    idle.add_rollout(1, [(-2.0, 1)])
    busy.add_rollout(1, [(200.0, 1)])
    assert returns_of(counters, 4) == [198.0, 199.0, -2.0, 200.0]
    assert -1.0 not in returns_of(counters, EPISODES_READABLE)


@pytest.mark.parametrize("wanted", [1, 3, 5])
def test_never_more_episodes_than_asked_for(wanted: int) -> None:
    """At most `count` episodes are given, also where there are more."""
    counters = Counters(1)
    counters.writer(0).add_rollout(5, [(1.0, 1)] * 5)
    assert len(counters.recent_episodes(wanted)) == wanted


@pytest.mark.parametrize("wanted", [-1, 0, EPISODES_READABLE + 1])
def test_counts_out_of_range_are_refused(wanted: int) -> None:
    """No episodes, or more than are kept: the message shows what was asked for."""
    counters = Counters(2)
    assert counters.recent_episodes(EPISODES_READABLE) == []
    with pytest.raises(ValueError, match=rf"{EPISODES_READABLE}, got {wanted}$"):
        counters.recent_episodes(wanted)


def test_staleness_is_the_updates_of_others_between_pull_and_step() -> None:
    """A worker alone is never stale; with three updates of others in between it is 3."""
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


def test_staleness_beyond_the_bins_falls_in_the_last() -> None:
    """Bin 62 holds 62 alone, bin 63 all from 63 on; sum and maximum stay exact."""
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
def test_a_lap_adds_to_its_phase_alone(phase: str) -> None:
    """Time goes to the phase that is named, and to no other."""
    counters = Counters(2)
    counters.writer(1).lap(phase)
    assert [name for name, seconds in counters.seconds().items() if seconds > 0] == [phase]


def test_laps_leave_no_time_out() -> None:
    """The phases of a worker add up to the time from its start to its last lap."""
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


def test_seconds_add_over_workers() -> None:
    """Worker seconds: what all rows hold in a phase."""
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
