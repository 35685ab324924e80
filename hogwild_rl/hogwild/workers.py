"""Start, watch and stop worker processes.

Workers are forked from a server that has imported what they need (``forkserver``), or spawned where
there is none; they never inherit a process in which torch has run. This module imports no torch, so
that the server can be started before the parent imports it.
"""

import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from hogwild_rl.hogwild import server
from hogwild_rl.hogwild.failure import Failure
from hogwild_rl.hogwild.worker import Worker, live

_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_MOST_REPLACEMENTS = 1 << 20  # of one worker in one run
_ANSWER_WITHIN_S, _TEXT_BYTES = 0.5, 65_536
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def preload(module: str) -> None:
    """Starts the server that workers are forked from, with a module already imported in it.

    It returns at once; the import goes on beside whatever the caller does next. The server is the
    one of the whole process: whatever else it forks ignores Ctrl-C and computes on one thread too.
    Where it cannot be started, nothing is said: starting the first worker will tell.

    Args:
        module: dotted name of the module that holds the worker function.
    """
    if _METHOD != "forkserver":
        return
    from multiprocessing import forkserver, util

    forkserver.set_forkserver_preload([server.__name__, module])
    of = {server.VARIABLE: f"{os.getpid()} {util.get_temp_dir()}"}
    with (
        _in_children(of | _ONE_THREAD),
        _ctrl_c_ignored_in_children(),
        contextlib.suppress(OSError),
    ):
        forkserver.ensure_running()


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
        incarnation: number of this life of the run, from 0; workers of another are given others'
            seeds.
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
        self._count, self._seed = count, seed
        # Of every worker, how often it was started, counted from a number that no other run has.
        self._incarnations = [incarnation * _MOST_REPLACEMENTS] * count
        self._stop = memory.zeros(1, dtype=torch.uint8)
        self._lives: dict[int, _Life] = {}

    def __enter__(self) -> "Workers":
        preload(self._target.__module__)
        try:
            for index in range(self._count):
                self._start(index)
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def running(self) -> int:
        """How many workers have not ended."""
        return len(self._lives)

    @property
    def alive(self) -> list[int]:
        """Numbers of those that have not ended."""
        return list(self._lives)

    def _start(self, index: int) -> None:
        context: Any = multiprocessing.get_context(_METHOD)
        tracebacks, child_end = context.Pipe(duplex=False)
        worker = Worker(index, self._incarnations[index], self._seed, self._stop.item)
        process = context.Process(
            target=live,
            args=(worker, self._target, self._arguments, child_end),
            name=f"worker {index}",
            daemon=True,
        )
        with _in_children(_ONE_THREAD):
            process.start()
        child_end.close()
        self._lives[index] = _Life(process, tracebacks)

    def replace(self, index: int) -> None:
        """Starts a worker that has ended once more, with seeds of its own."""
        assert index not in self._lives, f"worker {index} has not ended"
        self._incarnations[index] += 1
        self._start(index)

    def put_down(self, index: int, silent_s: float) -> Failure:
        """Kills a worker that hangs, after asking where; one that is stopped cannot tell."""
        life = self._lives[index]
        stack = _stack(life)
        life.process.kill()
        life.process.join()
        failure = self._bury_one(index)
        return dataclasses.replace(failure, traceback=stack, silent_s=silent_s)

    def wait(self, timeout_s: float) -> list[Failure]:
        """Waits until a worker ends or the time is over.

        Returns:
            The workers found to have failed, in the order of their numbers.
        """
        if self._lives:
            sentinels = [life.process.sentinel for life in self._lives.values()]
            multiprocessing.connection.wait(sentinels, timeout_s)
        ended = [i for i, life in self._lives.items() if life.process.exitcode is not None]
        return self._bury(ended)

    def _bury(self, ended: list[int]) -> list[Failure]:
        failures = [self._bury_one(index) for index in ended]
        return [failure for failure in failures if failure.exit_code != 0]

    def _bury_one(self, index: int) -> Failure:
        life = self._lives.pop(index)
        text = ""
        with contextlib.suppress(OSError):
            text = _read(life.tracebacks, 0.0)
        life.tracebacks.close()
        exit_code = life.process.exitcode
        life.process.join()
        life.process.close()
        return Failure(index, exit_code, text)

    def stop(self, timeout_s: float) -> list[Failure]:
        """Asks all workers to end, waits for them, and kills those that have not ended in time.

        Returns:
            The workers that failed by themselves meanwhile.
        """
        self._stop[0] = 1
        deadline = time.monotonic() + timeout_s
        failures: list[Failure] = []
        while self._lives and time.monotonic() < deadline:
            failures += self.wait(deadline - time.monotonic())
        self.kill()
        return failures

    def kill(self) -> None:
        """Ends all workers that still run, at once. Nothing they hold can be left locked."""
        for life in self._lives.values():
            life.process.kill()
        for life in self._lives.values():
            life.process.join()
        self._bury(list(self._lives))


def _stack(life: _Life) -> str:
    """Where a process is, by faulthandler, which needs no word of Python for it."""
    if hasattr(signal, "SIGUSR1"):
        with contextlib.suppress(OSError):
            os.kill(life.process.pid, signal.SIGUSR1)
            return _read(life.tracebacks, _ANSWER_WITHIN_S)
    return ""


def _read(tracebacks: Connection, within_s: float) -> str:
    """What a worker, or its faulthandler, wrote: bytes that come in pieces, each within a time."""
    text = b""
    while tracebacks.poll(within_s) and len(text) < _TEXT_BYTES:
        piece = os.read(tracebacks.fileno(), _TEXT_BYTES)
        if not piece:
            break
        text += piece
    return text.decode(errors="replace")


@contextlib.contextmanager
def _in_children(variables: Mapping[str, str]) -> Iterator[None]:
    """Processes started meanwhile have these in their environment."""
    before = {name: os.environ[name] for name in variables if name in os.environ}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
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
