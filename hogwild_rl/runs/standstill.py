"""A moment between two updates at which a worker waits, so that a checkpoint catches it whole."""

import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import torch

from hogwild_rl.hogwild import memory
from hogwild_rl.hogwild.worker import Worker
from hogwild_rl.runs import files

_LOOK_EVERY_S = 0.001
_PATIENCE_S = 10.0  # a checkpoint does without it then
_FILE = ".standing.{}"  # by the parent's id: what a killed one leaves, a resumed run sweeps
_FOR_EVER = -1


class Standstill:
    """Where a run's only worker says what it is in the middle of, when asked.

    There is no lock that a dead worker could hold: each of three numbers has one writer. The parent
    counts what it asked and what it released; the worker notes what it answered last.

    Args:
        folder: of the run; what the worker says goes through a file there.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._numbers = memory.zeros(3, dtype=torch.int64)
        self._asked, self._released, self._answered = self._numbers.unbind()
        self._path = folder / _FILE.format(os.getpid())
        self._asked_s = 0.0

    def begin(self) -> None:
        """In a worker that starts: it stands still no more."""
        self._answered.zero_()

    def pause(self, worker: Worker, state: Callable[[], Any]) -> None:
        """In the worker: if asked, says its state and waits until it may go on."""
        asked = int(self._asked)
        if asked > int(self._released):
            self._say(state(), asked)
            while int(self._released) < asked and not worker.stopping:
                time.sleep(_LOOK_EVERY_S)

    def leave(self, state: Any) -> None:
        """In the worker: says its state for the last time."""
        self._say(state, _FOR_EVER)

    def _say(self, state: Any, asked: int) -> None:
        try:
            with files.replacing(self._path) as file:
                torch.save(state, file)
        except files.FULL:  # the checkpoint, which will tell, does without
            self.remove()
        self._answered.fill_(asked)

    def reached(self) -> bool:
        """Asks the worker to stand still. True once it does, or when it was waited for too long."""
        if int(self._asked) == int(self._released):
            self._asked_s = time.monotonic()
            self._asked.add_(1)
        return self._stands() or time.monotonic() - self._asked_s > _PATIENCE_S

    def _stands(self) -> bool:
        asked, answered = int(self._asked), int(self._answered)
        return answered == _FOR_EVER or answered == asked > int(self._released)

    def state(self) -> Any:
        """What the worker said; None where it does not stand still, or nothing can be written."""
        if self._stands() and self._path.exists():
            return torch.load(self._path, weights_only=True)
        return None

    def release(self) -> None:
        """Lets the worker go on."""
        self._released.copy_(self._asked)

    def remove(self) -> None:
        """Removes the file, when there is no worker any more."""
        self._path.unlink(missing_ok=True)
