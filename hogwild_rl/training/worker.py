"""The loop of every worker."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from hogwild_rl.hogwild.processes import Worker
from hogwild_rl.training.task import Task


class ResumableCollector(Protocol):
    """A collector whose state a checkpoint can hold."""

    def state(self) -> dict[str, Any] | None:
        """Random streams, environments and open episodes; None if they are not kept."""

    def restore(self, state: dict[str, Any] | None) -> None:
        """Continues from a `state`."""

    def finish(self) -> None:
        """Completes the counts and files of the last update."""


class AnySafePoint(Protocol):
    """A place between two updates at which a checkpoint may be written."""

    def enter(self, worker: Worker, task: Task[Any]) -> bool:
        """True if the worker continues from the checkpoint that is resumed."""

    def reach(self, worker: Worker, capture: Callable[[], Any]) -> None:
        """Between two updates."""

    def leave(self, capture: Callable[[], Any]) -> None:
        """After the last update."""


def iterations(worker: Worker, task: Task[Any], collector: ResumableCollector) -> Iterator[float]:
    """Progress in [0, 1) before each update, until all workers have taken `total_timesteps`.

    Between two iterations the worker is at a safe point: the run may be logged there, and a
    checkpoint may capture the state of the collector.
    """
    counters, total = task.state.counters, task.config.total_timesteps
    point: AnySafePoint | None = task.safe_point
    if point is not None and point.enter(worker, task):
        collector.restore(task.resumed)
    while not worker.stopping:
        progress = (task.steps_before + counters.total("steps")) / total
        if progress >= 1:
            break
        yield progress
        if point is not None:
            point.reach(worker, collector.state)
    collector.finish()
    if point is not None:
        point.leave(collector.state)
