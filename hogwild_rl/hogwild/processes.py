"""Worker processes: start, watch and stop.

Workers are forked from a server that has imported their modules (``forkserver``), or spawned where
there is none; they never inherit a process in which torch has run. This module imports no torch, so
that the server can start before the parent imports it.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from hogwild_rl.hogwild import forkserver, shared_memory


@dataclasses.dataclass(frozen=True)
class Failure:
    """A worker, or another numbered process, that ended otherwise than by returning.

    Attributes:
        worker: its number.
        exit_code: negative where a signal killed it.
        traceback: of what it raised, or of where it hung; empty where nobody knows.
        kind: what it is called.
        silent_s: for how long it gave no sign of life, where it was killed for that.
    """

    worker: int
    exit_code: int
    traceback: str
    kind: str = "worker"
    silent_s: float = 0.0

    def __str__(self) -> str:
        if self.silent_s:
            how = f"gave no sign of life for {self.silent_s:.0f} s and was killed"
        elif self.exit_code < 0:
            how = f"was killed by {_signal_name(-self.exit_code)}"
        else:
            how = f"failed with exit code {self.exit_code}"
        return f"{self.kind} {self.worker} {how}" + (
            f":\n{self.traceback}" if self.traceback else ""
        )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no name
        return f"signal {number}"


_TRACEBACK_BYTES = 32_768  # well below a pipe's buffer: a failing worker never waits for its reader


@dataclasses.dataclass(frozen=True)
class Worker:
    """What a worker knows of itself: the first argument of every worker function.

    Attributes:
        index: 0 for the first worker.
        restart_index: 0 at first, 1 after a restart of this worker, and so on.
        seed: what `random_seeds` are drawn from.
        stop: tells whether the work should end.
    """

    index: int
    restart_index: int
    seed: int
    stop: Callable[[], Any]

    @property
    def stopping(self) -> bool:
        """True once the parent has asked the workers to end."""
        return bool(self.stop())

    def random_seeds(self, count: int) -> list[int]:
        """Seeds below 2³¹ that no other worker, and no other life of this one, is given."""
        return random_seeds(self.seed, self.index, self.restart_index, count)


def random_seeds(seed: int, index: int, restart_index: int, count: int) -> list[int]:
    """Seeds below 2³¹ for one life of one worker, drawn from a run's seed."""
    sequence = np.random.SeedSequence(seed, spawn_key=(index, restart_index))
    return [int(word) >> 1 for word in sequence.generate_state(count)]


def child_main(
    worker: Worker, target: Callable[..., None], arguments: tuple[Any, ...], tracebacks: Connection
) -> None:
    """What a worker process does, from its first instruction of ours to its last.

    It computes on one thread, ignores Ctrl-C, which is the parent's to handle, and leaves when the
    parent is gone, however it went.
    """
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    faulthandler.enable(tracebacks.fileno())
    if hasattr(faulthandler, "register"):  # asked by the parent where it hangs, it answers there
        faulthandler.register(signal.SIGUSR1, file=tracebacks.fileno())
    torch.set_num_threads(1)
    shared_memory.retain_freed_memory()
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
    from multiprocessing import forkserver as mp_forkserver
    from multiprocessing import util

    mp_forkserver.set_forkserver_preload([forkserver.__name__, module])
    of = {forkserver.VARIABLE: f"{os.getpid()} {util.get_temp_dir()}"}
    with (
        _in_children(of | _ONE_THREAD),
        _ctrl_c_ignored_in_children(),
        contextlib.suppress(OSError),
    ):
        mp_forkserver.ensure_running()


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
        restart_index: number of this life of the run, from 0; workers of another are given others'
            seeds.
    """

    def __init__(
        self,
        target: Callable[..., None],
        arguments: Sequence[Any],
        count: int,
        seed: int,
        restart_index: int = 0,
    ) -> None:
        import torch

        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        self._target, self._arguments = target, tuple(arguments)
        self._count, self._seed = count, seed
        # Of every worker, how often it was started, counted from a number that no other run has.
        self._restart_indices = [restart_index * _MOST_REPLACEMENTS] * count
        self._stop = shared_memory.zeros(1, dtype=torch.uint8)
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
        worker = Worker(index, self._restart_indices[index], self._seed, self._stop.item)
        process = context.Process(
            target=child_main,
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
        self._restart_indices[index] += 1
        self._start(index)

    def kill_hung(self, index: int, silent_s: float) -> Failure:
        """Kills a worker that hangs, after asking where; one that is stopped cannot tell."""
        life = self._lives[index]
        stack = _stack(life)
        life.process.kill()
        life.process.join()
        failure = self._reap_one(index)
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
        return self._reap(ended)

    def _reap(self, ended: list[int]) -> list[Failure]:
        failures = [self._reap_one(index) for index in ended]
        return [failure for failure in failures if failure.exit_code != 0]

    def _reap_one(self, index: int) -> Failure:
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
        self._reap(list(self._lives))


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
