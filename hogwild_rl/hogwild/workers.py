"""Start, watch and stop worker processes.

Workers are forked from a server that has imported what they need (``forkserver``), or spawned where
there is none; they never inherit a process in which torch has run. They compute on one thread,
ignore Ctrl-C, which is the parent's to handle, and leave when the parent is gone, however it went.
This module imports no torch, so that the server can be started before the parent imports it.
"""

import contextlib
import dataclasses
import faulthandler
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_TRACEBACK_BYTES = 32_768  # well below a pipe's buffer: a failing worker never waits for its reader


def preload(module: str) -> None:
    """Starts the server that workers are forked from, with a module already imported in it.

    It returns at once; the import goes on beside whatever the caller does next.

    Args:
        module: dotted name of the module that holds the worker function.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return
    from multiprocessing import forkserver

    forkserver.set_forkserver_preload([module])
    with _one_thread_in_children(), _ctrl_c_ignored_in_children():
        forkserver.ensure_running()


@dataclasses.dataclass(frozen=True)
class Worker:
    """What a worker knows of itself: the first argument of every worker function.

    Attributes:
        index: 0 for the first worker.
        incarnation: 0 at first, 1 after a restart of this worker, and so on.
        seed: what `random_seed` is drawn from.
    """

    index: int
    incarnation: int
    seed: int
    _stop: Any

    @property
    def stopping(self) -> bool:
        """True once the parent has asked the workers to end."""
        return bool(self._stop[0])

    def random_seeds(self, count: int) -> list[int]:
        """Seeds below 2³¹ that no other worker, and no other life of this one, is given."""
        sequence = np.random.SeedSequence(self.seed, spawn_key=(self.index, self.incarnation))
        return [int(word) >> 1 for word in sequence.generate_state(count)]


@dataclasses.dataclass(frozen=True)
class Failure:
    """A worker that ended otherwise than by returning."""

    worker: int
    exit_code: int
    traceback: str

    def __str__(self) -> str:
        if self.exit_code < 0:
            how = f"was killed by {signal.Signals(-self.exit_code).name}"
        else:
            how = f"failed with exit code {self.exit_code}"
        return f"worker {self.worker} {how}" + (f":\n{self.traceback}" if self.traceback else "")


@dataclasses.dataclass(frozen=True)
class _Life:
    process: Any  # multiprocessing's process classes share no public base
    tracebacks: Connection


class Workers:
    """A fixed number of worker processes that run ``target(worker, *arguments)``.

    Use it as a context manager: whatever happens inside, no process is left behind.

    Args:
        target: a function at the top level of a module.
        arguments: picklable; tensors in shared memory stay shared.
        count: number of workers, at least 1.
        seed: from which each worker's seeds are drawn.
        incarnation: of the first life of each worker; a resumed run gives a fresh one.
    """

    def __init__(
        self,
        target: Callable[..., None],
        arguments: Sequence[Any],
        count: int,
        seed: int,
        incarnation: int = 0,
    ) -> None:
        import torch

        from hogwild_rl.hogwild import memory

        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        self._target, self._arguments = target, tuple(arguments)
        self._count, self._seed, self._incarnation = count, seed, incarnation
        self._stop = memory.zeros(1, dtype=torch.uint8)
        self._lives: dict[int, _Life] = {}

    def __enter__(self) -> "Workers":
        preload(self._target.__module__)
        for index in range(self._count):
            self._start(index)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def running(self) -> int:
        """How many workers have not ended."""
        return len(self._lives)

    def _start(self, index: int) -> None:
        methods = multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context(
            "forkserver" if "forkserver" in methods else "spawn"
        )
        tracebacks, child_end = context.Pipe(duplex=False)
        worker = Worker(index, self._incarnation, self._seed, self._stop)
        process = context.Process(
            target=_live,
            args=(worker, self._target, self._arguments, child_end),
            name=f"worker {index}",
            daemon=True,
        )
        with _one_thread_in_children():
            process.start()
        child_end.close()
        self._lives[index] = _Life(process, tracebacks)

    def wait(self, timeout_s: float) -> list[Failure]:
        """Waits until a worker ends or the time is over.

        Returns:
            The workers found to have failed, in the order of their numbers.
        """
        if self._lives:
            sentinels = [life.process.sentinel for life in self._lives.values()]
            multiprocessing.connection.wait(sentinels, timeout_s)
        ended = [i for i, life in self._lives.items() if life.process.exitcode is not None]
        failures = [self._bury(index) for index in ended]
        return [failure for failure in failures if failure.exit_code != 0]

    def _bury(self, index: int) -> Failure:
        life = self._lives.pop(index)
        text = ""
        with contextlib.suppress(EOFError, OSError):
            if life.tracebacks.poll():
                text = life.tracebacks.recv_bytes().decode(errors="replace")
        life.tracebacks.close()
        exit_code = life.process.exitcode
        life.process.join()
        life.process.close()
        return Failure(index, exit_code, text)

    def stop(self, timeout_s: float) -> list[Failure]:
        """Asks all workers to end, waits for them, and kills those that have not ended in time.

        Returns:
            The workers that failed while stopping or had to be killed.
        """
        self._stop[0] = 1
        deadline = time.monotonic() + timeout_s
        failures: list[Failure] = []
        while self._lives and time.monotonic() < deadline:
            failures += self.wait(deadline - time.monotonic())
        return failures + self.kill()

    def kill(self) -> list[Failure]:
        """Ends all workers that still run, at once. Nothing they hold can be left locked."""
        for life in self._lives.values():
            life.process.kill()
        for life in self._lives.values():
            life.process.join()
        return [self._bury(index) for index in list(self._lives)]


def _live(
    worker: Worker, target: Callable[..., None], arguments: tuple[Any, ...], tracebacks: Connection
) -> None:
    """What a worker process does, from its first instruction of ours to its last."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    faulthandler.enable()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # averages of dead units decay into denormals, which are slow
    try:
        target(worker, *arguments)
    except BaseException as error:
        tracebacks.send_bytes(traceback.format_exc().encode()[-_TRACEBACK_BYTES:])
        sys.exit(error.code if isinstance(error, SystemExit) else 1)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def _one_thread_in_children() -> Iterator[None]:
    before = {name: os.environ[name] for name in _ONE_THREAD if name in os.environ}
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name in _ONE_THREAD:
            del os.environ[name]
        os.environ.update(before)


@contextlib.contextmanager
def _ctrl_c_ignored_in_children() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may change handlers
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
