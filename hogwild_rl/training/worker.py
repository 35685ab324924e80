"""The loop of every worker."""

from collections.abc import Iterator
from typing import Any

from hogwild_rl.hogwild.processes import Worker
from hogwild_rl.training.collector import Collector
from hogwild_rl.training.off_policy import ReplayCollector
from hogwild_rl.training.task import Task


def iterations(
    worker: Worker, task: Task[Any], collector: Collector | ReplayCollector
) -> Iterator[float]:
    """Progress in [0, 1) before each update, until all workers have taken `total_timesteps`.

    Between two iterations the worker is at a safe point: the run may be logged there, and a
    checkpoint may capture the state of the collector.
    """
    counters, total, point = task.state.counters, task.config.total_timesteps, task.safe_point
    if point is not None and point.enter(worker, task):
        collector.restore(task.resumed)
    while not worker.should_stop():
        progress = (task.steps_before + counters.total("steps")) / total
        if progress >= 1:
            break
        yield progress
        if point is not None:
            point.reach(worker, collector.state)
    collector.finish()
    if point is not None:
        point.leave(collector.state)
