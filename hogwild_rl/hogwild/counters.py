"""Counts, timings and recent episodes of every worker in shared memory, exact without a lock.

Each worker writes only its own row; readers sum the rows. A worker killed at any instruction
leaves its own row readable and all other rows unchanged.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hogwild_rl.hogwild import shared_memory

EPISODES_KEPT = 128  # per worker
EPISODES_READABLE = 100  # of these; the writer overwrites the oldest
GAUGES = 8  # values per worker
STALENESS_BINS = 64  # staleness 0, 1, ..., 62, and 63 or more
PHASES = ("env", "act", "learn", "share")  # share: pull and step
_PHASE = {name: index for index, name in enumerate(PHASES)}
_ENV = _PHASE["env"]

_EPISODE = np.dtype([("time_s", "f8"), ("step", "i8"), ("return", "f8"), ("length", "i8")])
_ROW = np.dtype(
    [
        *[(name, "i8") for name in ("steps", "updates", "dropped", "dropped_in_a_row")],
        *[(name, "i8") for name in ("nonfinite", "nonfinite_source", "episode_count")],
        *[(name, "i8") for name in ("staleness_sum", "staleness_max")],
        ("staleness", "i8", STALENESS_BINS),
        ("heartbeat_s", "f8"),
        ("seconds", "f8", len(PHASES)),
        ("gauges", "f8", GAUGES),
        ("episodes", _EPISODE, EPISODES_KEPT),
    ]
)
_CACHE_LINE = 64  # bytes; rows are aligned to it to avoid false sharing


class Counters:
    """One row of counts and timings per worker in one shared memory segment.

    Args:
        workers: number of rows, at least 1.
        gauges: names of at most GAUGES values of which each worker writes the newest.
    """

    def __init__(self, workers: int, gauges: Sequence[str] = ()) -> None:
        stride = -(-_ROW.itemsize // _CACHE_LINE) * _CACHE_LINE
        self._memory = shared_memory.zeros(workers, stride, dtype=torch.uint8)
        self._gauges = tuple(gauges)
        self._view()
        self.rows["gauges"] = math.nan

    def _view(self) -> None:
        padded = np.dtype({"names": ["row"], "formats": [_ROW], "itemsize": self._memory.shape[1]})
        array: np.ndarray[Any, Any] = self._memory.numpy()
        self.rows = array.view(padded)[:, 0]["row"]
        self._columns = {name: self.rows[name] for name in _ROW.names or ()}

    def __getstate__(self) -> tuple[torch.Tensor, tuple[str, ...]]:
        return self._memory, self._gauges

    def __setstate__(self, state: tuple[torch.Tensor, tuple[str, ...]]) -> None:
        self._memory, self._gauges = state
        self._view()

    def __len__(self) -> int:
        return len(self.rows)

    def total(self, field: str) -> int:
        """Sum of a count over all workers: steps, updates, dropped or episode_count."""
        return sum(self._columns[field].tolist())

    def seconds(self) -> dict[str, float]:
        """Seconds spent in each phase, summed over all workers."""
        return dict(zip(PHASES, self.rows["seconds"].sum(axis=0).tolist(), strict=True))

    def gauges(self) -> dict[str, float]:
        """Newest values by name, each the mean over workers that have one, or NaN."""
        means = torch.from_numpy(self.rows["gauges"].copy()).nanmean(0).tolist()
        return dict(zip(self._gauges, means, strict=False))

    def staleness_histogram(self) -> "np.ndarray[Any, np.dtype[np.int64]]":
        """Number of updates by staleness, [STALENESS_BINS]; the last bin has all larger values."""
        return np.asarray(self.rows["staleness"].sum(axis=0))

    def recent_episodes(self, count: int) -> "np.ndarray[Any, Any]":
        """Newest finished episodes of all workers, at most `count`, oldest first.

        Each has the fields return (undiscounted), length in steps, time_s, the end on the clock of
        `time.monotonic`, which all processes share, and step, the steps that its worker had taken.

        Raises:
            ValueError: `count` is below 1 or above EPISODES_READABLE.
        """
        if not 1 <= count <= EPISODES_READABLE:
            raise ValueError(f"count must lie between 1 and {EPISODES_READABLE}, got {count}")
        episodes = np.concatenate([_newest(row, count) for row in self.rows])
        newest: np.ndarray[Any, Any] = episodes[np.argsort(episodes["time_s"], kind="stable")]
        return newest[-count:]

    def writer(self, worker: int) -> "CounterWriter":
        """Writer of one worker's row, for use only in that worker's process."""
        return CounterWriter(self, worker)


def _newest(row: Any, count: int) -> "np.ndarray[Any, Any]":
    """Copy of a row's newest episodes, oldest first; their writer does not overwrite them."""
    written = int(row["episode_count"])
    numbers = np.arange(max(0, written - count), written)
    newest: np.ndarray[Any, Any] = row["episodes"][numbers % EPISODES_KEPT]
    return newest


class CounterWriter:
    """Writer of one worker's row. No other process may write that row."""

    def __init__(self, counters: Counters, worker: int) -> None:
        self._updates = counters.rows["updates"]  # of all workers
        row = counters.rows[worker : worker + 1]
        self._own = {name: row[name] for name in _ROW.names or ()}  # faster than fields of the row
        self._seconds, self._staleness = row["seconds"][0], row["staleness"][0]
        self._episodes = row["episodes"][0]
        self._gauges = row["gauges"][0]
        self._own["heartbeat_s"][0] = self._lap_s = time.monotonic()

    def add_update(self, updates_at_pull: int | None = None) -> None:
        """Counts an applied gradient and its staleness.

        Args:
            updates_at_pull: `total_updates()` when the parameters of the gradient were pulled; if
                None, the staleness is 0.
        """
        own = self._own
        staleness = 0 if updates_at_pull is None else self.total_updates() - updates_at_pull
        self._staleness[min(staleness, STALENESS_BINS - 1)] += 1
        own["staleness_sum"][0] += staleness
        own["staleness_max"][0] = max(int(own["staleness_max"][0]), staleness)
        own["updates"][0] += 1
        own["dropped_in_a_row"][0] = 0

    def add_dropped(self, *, stale: bool = False) -> None:
        """Counts a gradient that was dropped because it was not finite, or stale."""
        self._own["dropped"][0] += 1
        self._own["dropped_in_a_row"][0] += not stale

    def add_nonfinite(self, sources: Sequence[int]) -> None:
        """Counts data sources, given by index, that returned non-finite values."""
        for source in sources:
            self._own["nonfinite_source"][0] = source
            self._own["nonfinite"][0] += 1

    def add_rollout(self, steps: int, episodes: Sequence[tuple[float, int]]) -> None:
        """Counts steps and the episodes that ended in them, each as (return, length)."""
        self._own["steps"][0] += steps
        for episode in episodes:
            count, taken = int(self._own["episode_count"][0]), int(self._own["steps"][0])
            self._episodes[count % EPISODES_KEPT] = (time.monotonic(), taken, *episode)
            self._own["episode_count"][0] = count + 1  # last: readers see complete episodes only

    def lap(self, phase: str, env_end_s: float | None = None) -> None:
        """Adds the time since the last lap to a phase and updates the heartbeat.

        Args:
            phase: one of PHASES.
            env_end_s: end of a phase env between the last lap and this phase, if any.
        """
        now_s = time.monotonic()
        if env_end_s is not None:
            self._seconds[_ENV] += env_end_s - self._lap_s
            self._lap_s = env_end_s
        self._seconds[_PHASE[phase]] += now_s - self._lap_s
        self._lap_s = now_s
        self._own["heartbeat_s"][0] = now_s

    def set_gauges(self, values: Sequence[float]) -> None:
        """Overwrites this worker's newest values, in the order of the names."""
        self._gauges[: len(values)] = values

    def total_updates(self) -> int:
        """Number of updates of all workers so far."""
        return sum(self._updates.tolist())
