"""A worker's resumable state, and the safe point at which a checkpoint captures it."""

import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from hogwild_rl.collect.rollout import Collector
from hogwild_rl.hogwild import shared_memory
from hogwild_rl.hogwild.processes import Worker
from hogwild_rl.learn.normalization import Normalizer
from hogwild_rl.runs import files
from hogwild_rl.runs.run import Run
from hogwild_rl.training import env_snapshot

OBSERVE_EVERY_S = 0.05  # reports of a run
_POLL_S = 0.001
_WAIT_AT_MOST_S = 10.0  # after that a checkpoint is written without the state
_FILE = ".safe_point.{}"  # by the parent's process id; a resumed run removes what is left over
_LEFT = -1


class SafePoint:
    """A place between two updates at which the only worker hands its state to the parent.

    No lock is involved: each of three numbers has one writer. The parent counts its requests and
    its releases; the worker writes the number of the request it answered last.

    The state passes through a file in the folder of the run.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._numbers = shared_memory.zeros(3, dtype=torch.int64)
        self._requested, self._released, self._answered = self._numbers.unbind()
        self._path = folder / _FILE.format(os.getpid())
        self._requested_s = 0.0

    def enter(self, worker: Worker, task: Any) -> bool:
        """In the worker, at its start: True unless it replaces a worker that made progress."""
        self._answered.zero_()
        return bool(task.state.counters.rows["steps"][worker.index] == 0)

    def reach(self, worker: Worker, capture: Callable[[], Any]) -> None:
        """In the worker, between two updates: if requested, writes its state and waits."""
        requested = int(self._requested)
        if requested > int(self._released):
            self._write(capture(), requested)
            while int(self._released) < requested and not worker.should_stop():
                time.sleep(_POLL_S)

    def leave(self, capture: Callable[[], Any]) -> None:
        """In the worker, after its last update: writes its state."""
        self._write(capture(), _LEFT)

    def _write(self, state: Any, request: int) -> None:
        try:
            with files.atomic_write(self._path) as file:
                torch.save(state, file)
        except files.FULL:  # the checkpoint, which reports it, is written without the state
            self.remove()
        self._answered.fill_(request)

    def captured(self) -> bool:
        """In the parent: requests the state. True once it is there, or after a time limit."""
        if int(self._requested) == int(self._released):
            self._requested_s = time.monotonic()
            self._requested.add_(1)
        return self._is_captured() or time.monotonic() - self._requested_s > _WAIT_AT_MOST_S

    def _is_captured(self) -> bool:
        requested, answered = int(self._requested), int(self._answered)
        return answered == _LEFT or answered == requested > int(self._released)

    def state(self) -> Any:
        """In the parent: the worker's state, or None if the worker is not at the safe point."""
        if self._is_captured() and self._path.exists():
            return torch.load(self._path, weights_only=True)
        return None

    def release(self) -> None:
        """In the parent: lets the worker continue."""
        self._released.copy_(self._requested)

    def remove(self) -> None:
        """Removes the file, after the worker has ended."""
        self._path.unlink(missing_ok=True)


class LocalSafePoint:
    """Safe point of a worker in the parent's process: logs the run, and saves it when due.

    Attributes:
        state: the worker's state after its last update, or None.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._observed_s = run, 0.0
        self.state: Any = None

    def enter(self, worker: Worker, task: Any) -> bool:
        """Returns True: the worker is never replaced."""
        del worker
        self._counters = task.state.counters
        return True

    def reach(self, worker: Worker, capture: Callable[[], Any]) -> None:
        """Logs the run every 0.05 s."""
        del worker
        if time.monotonic() - self._observed_s >= OBSERVE_EVERY_S:
            self._observed_s = time.monotonic()
            self._run.observe(self._counters, capture)

    def leave(self, capture: Callable[[], Any]) -> None:
        """Stores the state for the last checkpoint."""
        self.state = capture()


class WorkerState:
    """A worker's random stream, environments and open episodes, between two updates.

    A run with one worker, the same settings and environments written in Python that is resumed from
    it ends with the parameters of a run that was never interrupted, bit for bit.
    """

    def __init__(
        self,
        generator: torch.Generator | np.random.Generator,
        groups: Sequence[VectorEnv[Any, Any, Any]],
        collector: Collector,
        normalizer: Normalizer,
    ) -> None:
        self._generator, self._groups = generator, groups
        self._collector, self._normalizer = collector, normalizer

    def state(self) -> dict[str, Any]:
        """Plain values and tensors for a checkpoint, or the reason why there are none."""
        try:
            envs = [env_snapshot.capture(group) for group in self._groups]
        except env_snapshot.OpaqueError as error:
            return {"unsaved_reason": str(error)}
        discounted = self._normalizer.discounted
        return {
            "envs": envs,
            "generator": self._random_state(),
            "carried": {n: t.to("cpu", copy=True) for n, t in self._collector.carried.items()},
            "discounted": None if discounted is None else torch.tensor(discounted),
        }

    def _random_state(self) -> Any:
        if isinstance(self._generator, torch.Generator):
            return self._generator.get_state()
        return env_snapshot.capture(self._generator)

    def restore(self, state: dict[str, Any] | None, seed: int) -> str:
        """Continues from a `state` of the same device, number and type of environments.

        Returns:
            Reason why environments were reset, with this seed; empty if they were not, or if the
            `state` has the reason.
        """
        if state is None or "unsaved_reason" in state:
            return ""
        try:
            reason = self._restore(state)
        except Exception:  # a file can hold anything
            reason = "the checkpoint holds other environments"
        if reason:
            self._collector.begin(seed)
        return reason

    def _restore(self, state: dict[str, Any]) -> str:
        saved, now = state["carried"], self._collector.carried
        shapes = [{name: t.shape for name, t in each.items()} for each in (saved, now)]
        if shapes[0] != shapes[1]:
            return "the checkpoint holds another number of environments"
        saved_stream, stream = state["generator"], self._random_state()
        if type(saved_stream) is not type(stream) or len(saved_stream) != len(stream):
            return "the checkpoint's random stream is of another device or version"
        for group, taken in zip(self._groups, state["envs"], strict=True):
            env_snapshot.restore(group, taken)
        for name, tensor in now.items():
            tensor.copy_(saved[name])
        if isinstance(self._generator, torch.Generator):
            self._generator.set_state(saved_stream)
        else:
            env_snapshot.restore(self._generator, saved_stream)
        if state["discounted"] is not None:
            self._normalizer.discounted = state["discounted"].numpy()
        return ""
