"""The inside of a worker process: what it knows of itself, and its life from start to end."""

import dataclasses
import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

_TRACEBACK_BYTES = 32_768  # well below a pipe's buffer: a failing worker never waits for its reader


@dataclasses.dataclass(frozen=True)
class Worker:
    """What a worker knows of itself: the first argument of every worker function.

    Attributes:
        index: 0 for the first worker.
        incarnation: 0 at first, 1 after a restart of this worker, and so on.
        seed: what `random_seeds` are drawn from.
        stop: tells whether the work should end.
    """

    index: int
    incarnation: int
    seed: int
    stop: Callable[[], Any]

    @property
    def stopping(self) -> bool:
        """True once the parent has asked the workers to end."""
        return bool(self.stop())

    def random_seeds(self, count: int) -> list[int]:
        """Seeds below 2³¹ that no other worker, and no other life of this one, is given."""
        return random_seeds(self.seed, self.index, self.incarnation, count)


def random_seeds(seed: int, index: int, incarnation: int, count: int) -> list[int]:
    """Seeds below 2³¹ for one life of one worker, drawn from a run's seed."""
    sequence = np.random.SeedSequence(seed, spawn_key=(index, incarnation))
    return [int(word) >> 1 for word in sequence.generate_state(count)]


def live(
    worker: Worker, target: Callable[..., None], arguments: tuple[Any, ...], tracebacks: Connection
) -> None:
    """What a worker process does, from its first instruction of ours to its last.

    It computes on one thread, ignores Ctrl-C, which is the parent's to handle, and leaves when the
    parent is gone, however it went.
    """
    import torch

    from hogwild_rl.hogwild import memory

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    faulthandler.enable(tracebacks.fileno())
    if hasattr(faulthandler, "register"):  # asked by the parent where it hangs, it answers there
        faulthandler.register(signal.SIGUSR1, file=tracebacks.fileno())
    torch.set_num_threads(1)
    memory.keep_freed()
    torch.set_flush_denormal(True)  # averages of dead units decay into denormals, which are slow
    try:
        target(worker, *arguments)
    except BaseException as error:
        text = traceback.format_exc().encode(errors="replace")
        os.write(tracebacks.fileno(), text[-_TRACEBACK_BYTES:])
        # Leaving early is a failure even with sys.exit(0): the others would go on, one fewer.
        sys.exit((isinstance(error, SystemExit) and error.code) or 1)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
