"""A worker's resumable state, and the safe point at which a checkpoint captures it."""

import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from gymnasium.vector import VectorEnv

from hogwild_rl.collect.rollout import Collector
from hogwild_rl.hogwild import shared_memory
from hogwild_rl.hogwild.processes import Worker
from hogwild_rl.learn.normalization import Normalizer
from hogwild_rl.runs import files
from hogwild_rl.training import env_snapshot

_LOOK_EVERY_S = 0.001
_WAIT_AT_MOST_S = 10.0  # a checkpoint does without it then
_FILE = ".standing.{}"  # by the parent's id: what a killed one leaves, a resumed run sweeps
_LEFT = -1


class SafePoint:
    """Where a run's only worker says what it is in the middle of, when asked.

    There is no lock that a dead worker could hold: each of three numbers has one writer. The parent
    counts what it asked and what it released; the worker notes what it answered last.

    Args:
        folder: of the run; what the worker says goes through a file there.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._numbers = shared_memory.zeros(3, dtype=torch.int64)
        self._asked, self._released, self._answered = self._numbers.unbind()
        self._path = folder / _FILE.format(os.getpid())
        self._asked_s = 0.0

    def begin(self) -> None:
        """In a worker that starts: it stands still no more."""
        self._answered.zero_()

    def reach(self, worker: Worker, state: Callable[[], Any]) -> None:
        """In the worker: if asked, says its state and waits until it may go on."""
        asked = int(self._asked)
        if asked > int(self._released):
            self._say(state(), asked)
            while int(self._released) < asked and not worker.stopping:
                time.sleep(_LOOK_EVERY_S)

    def leave(self, state: Any) -> None:
        """In the worker: says its state for the last time."""
        self._say(state, _LEFT)

    def _say(self, state: Any, asked: int) -> None:
        try:
            with files.atomic_write(self._path) as file:
                torch.save(state, file)
        except files.FULL:  # the checkpoint, which will tell, does without
            self.remove()
        self._answered.fill_(asked)

    def captured(self) -> bool:
        """Asks the worker to stand still. True once it does, or when it was waited for too long."""
        if int(self._asked) == int(self._released):
            self._asked_s = time.monotonic()
            self._asked.add_(1)
        return self._is_captured() or time.monotonic() - self._asked_s > _WAIT_AT_MOST_S

    def _is_captured(self) -> bool:
        asked, answered = int(self._asked), int(self._answered)
        return answered == _LEFT or answered == asked > int(self._released)

    def state(self) -> Any:
        """What the worker said; None where it does not stand still, or nothing can be written."""
        if self._is_captured() and self._path.exists():
            return torch.load(self._path, weights_only=True)
        return None

    def release(self) -> None:
        """Lets the worker go on."""
        self._released.copy_(self._asked)

    def remove(self) -> None:
        """Removes the file, when there is no worker any more."""
        self._path.unlink(missing_ok=True)


class WorkerState:
    """A worker's random stream, environments and open episodes, between two updates.

    With what a checkpoint holds besides, a run that goes on from it is the run that never stopped,
    bit for bit, if it has one worker, the same settings, and environments that live in Python.

    Args:
        generator: of the actions.
        groups: the environments.
        collector: of their steps.
        normalizer: of their rewards.
    """

    def __init__(
        self,
        generator: torch.Generator,
        groups: Sequence[VectorEnv[Any, Any, Any]],
        collector: Collector,
        normalizer: Normalizer,
    ) -> None:
        self._generator, self._groups = generator, groups
        self._collector, self._normalizer = collector, normalizer

    def state(self) -> dict[str, Any]:
        """For a checkpoint: plain values and tensors, or why environments cannot be saved."""
        try:
            envs = [env_snapshot.take(group) for group in self._groups]
        except env_snapshot.OpaqueError as error:
            return {"unsaved_reason": str(error)}
        discounted = self._normalizer.discounted
        return {
            "envs": envs,
            "generator": self._generator.get_state(),
            "carried": {n: t.to("cpu", copy=True) for n, t in self._collector.carried.items()},
            "discounted": None if discounted is None else torch.tensor(discounted),
        }

    def restore(self, state: dict[str, Any] | None, seed: int) -> str:
        """Continues where `state` was taken, with the same device, number and type of environments.

        Args:
            state: what `state` gave, or None.
            seed: of the environments, where they have to be reset.

        Returns:
            Why they were reset, empty if they were not or `state` gives the reason.
        """
        if state is None or "unsaved_reason" in state:
            return ""
        try:
            reason = self._restore(state)
        except Exception:  # of another making; a file can hold anything
            reason = "the checkpoint holds other environments"
        if reason:
            self._collector.begin(seed)
        return reason

    def _restore(self, state: dict[str, Any]) -> str:
        saved, now = state["carried"], self._collector.carried
        shapes = [{name: t.shape for name, t in each.items()} for each in (saved, now)]
        if shapes[0] != shapes[1]:
            return "the checkpoint holds another number of environments"
        if state["generator"].shape != self._generator.get_state().shape:
            return "the checkpoint's random stream is of another device"
        for group, taken in zip(self._groups, state["envs"], strict=True):
            env_snapshot.give(group, taken)
        for name, tensor in now.items():
            tensor.copy_(saved[name])
        self._generator.set_state(state["generator"])
        if state["discounted"] is not None:
            self._normalizer.discounted = state["discounted"].numpy()
        return ""
