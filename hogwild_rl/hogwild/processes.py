"""Worker processes: start, watch and stop.

Workers are forked from a server that has imported their modules (``forkserver``), or spawned where
there is none; they never inherit a process in which torch has run. This module does not import
torch, so that the server can start before the parent imports it.
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
    """Crash or hang of a worker or another numbered process.

    Attributes:
        worker: index of the process.
        exit_code: exit code; negative if a signal killed the process.
        traceback: traceback of the exception, or stack of the hung process; empty if unknown.
        kind: name of this type of process in messages.
        silent_s: seconds without heartbeat if the process was killed for hanging, otherwise 0.
    """

    worker: int
    exit_code: int
    traceback: str
    kind: str = "worker"
    silent_s: float = 0.0

    def __str__(self) -> str:
        if self.silent_s:
            reason = f"had no heartbeat for {self.silent_s:.0f} s and was killed"
        elif self.exit_code < 0:
            reason = f"was killed by {_signal_name(-self.exit_code)}"
        else:
            reason = f"failed with exit code {self.exit_code}"
        return f"{self.kind} {self.worker} {reason}" + (
            f":\n{self.traceback}" if self.traceback else ""
        )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no name
        return f"signal {number}"


_TRACEBACK_BYTES = 32_768  # well below a pipe's buffer: writing it never blocks


@dataclasses.dataclass(frozen=True)
class Worker:
    """Index, seed and stop flag of a worker: the first argument of every worker function.

    Attributes:
        index: 0 for the first worker.
        restart_index: 0 at the first start, 1 after a restart of this worker, and so on.
        seed: seed of the run, from which `random_seeds` are derived.
        stop: function that returns true once the worker should end.
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
        """Seeds below 2³¹, different for every worker and every restart."""
        return random_seeds(self.seed, self.index, self.restart_index, count)


def random_seeds(seed: int, index: int, restart_index: int, count: int) -> list[int]:
    """Seeds below 2³¹ for one worker and restart, derived from the seed of a run."""
    sequence = np.random.SeedSequence(seed, spawn_key=(index, restart_index))
    return [int(word) >> 1 for word in sequence.generate_state(count)]


def child_main(
    worker: Worker, target: Callable[..., None], arguments: tuple[Any, ...], tracebacks: Connection
) -> None:
    """Main function of a worker process.

    It computes on one thread, ignores Ctrl-C, which the parent handles, and exits when the parent
    exits for any reason.
    """
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    faulthandler.enable(tracebacks.fileno())
    if hasattr(faulthandler, "register"):  # the parent requests the stack of a hung worker
        faulthandler.register(signal.SIGUSR1, file=tracebacks.fileno())
    torch.set_num_threads(1)
    shared_memory.retain_freed_memory()
    torch.set_flush_denormal(True)  # averages of dead units become denormals, which are slow
    try:
        target(worker, *arguments)
    except BaseException as error:
        text = traceback.format_exc().encode(errors="replace")
        os.write(tracebacks.fileno(), text[-_TRACEBACK_BYTES:])
        # sys.exit(0) is a failure too: the run would continue with one worker fewer.
        sys.exit((isinstance(error, SystemExit) and error.code) or 1)


def _exit_with_parent() -> None:
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

    It returns at once; the import runs in parallel. The server is shared by the whole process: all
    its other children ignore Ctrl-C and compute on one thread too. If it cannot be started, no
    error is raised here, but by the start of the first worker.

    Args:
        module: dotted name of the module that defines the worker function.
    """
    if _METHOD != "forkserver":
        return
    from multiprocessing import forkserver as mp_forkserver
    from multiprocessing import util

    mp_forkserver.set_forkserver_preload([forkserver.__name__, module])
    parent = {forkserver.VARIABLE: f"{os.getpid()} {util.get_temp_dir()}"}
    with (
        _in_children(parent | _ONE_THREAD),
        _ctrl_c_ignored_in_children(),
        contextlib.suppress(OSError),
    ):
        mp_forkserver.ensure_running()


@dataclasses.dataclass(frozen=True)
class _Process:
    process: Any  # multiprocessing's process classes share no public base
    tracebacks: Connection


class Workers:
    """A fixed number of worker processes that run ``target(worker, *arguments)``.

    Use it as a context manager: its exit always kills all processes that still run.

    Args:
        target: function at the top level of a module.
        arguments: picklable; tensors in shared memory stay shared.
        count: number of workers, at least 1.
        seed: seed of the run, from which each worker's seeds are derived.
        restart_index: index of this session of the run, from 0; each session has its own seeds.
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
        # Restarts per worker, counted from an offset that no other session of the run uses.
        self._restart_indices = [restart_index * _MOST_REPLACEMENTS] * count
        self._stop = shared_memory.zeros(1, dtype=torch.uint8)
        self._processes: dict[int, _Process] = {}

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
        """Number of workers that have not ended."""
        return len(self._processes)

    @property
    def alive(self) -> list[int]:
        """Indices of the workers that have not ended."""
        return list(self._processes)

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
        self._processes[index] = _Process(process, tracebacks)

    def replace(self, index: int) -> None:
        """Restarts a worker that has ended, with new seeds."""
        assert index not in self._processes, f"worker {index} is still running"
        self._restart_indices[index] += 1
        self._start(index)

    def kill_hung(self, index: int, silent_s: float) -> Failure:
        """Kills a hung worker and reports its stack; that of a stopped worker is unknown."""
        worker = self._processes[index]
        stack = _stack(worker)
        worker.process.kill()
        worker.process.join()
        failure = self._reap_one(index)
        return dataclasses.replace(failure, traceback=stack, silent_s=silent_s)

    def wait(self, timeout_s: float) -> list[Failure]:
        """Waits until a worker ends or the timeout expires.

        Returns:
            Failures of the workers that have ended.
        """
        if self._processes:
            sentinels = [each.process.sentinel for each in self._processes.values()]
            multiprocessing.connection.wait(sentinels, timeout_s)
        ended = [i for i, each in self._processes.items() if each.process.exitcode is not None]
        return self._reap(ended)

    def _reap(self, ended: list[int]) -> list[Failure]:
        failures = [self._reap_one(index) for index in ended]
        return [failure for failure in failures if failure.exit_code != 0]

    def _reap_one(self, index: int) -> Failure:
        worker = self._processes.pop(index)
        text = ""
        with contextlib.suppress(OSError):
            text = _read(worker.tracebacks, 0.0)
        worker.tracebacks.close()
        exit_code = worker.process.exitcode
        worker.process.join()
        worker.process.close()
        return Failure(index, exit_code, text)

    def stop(self, timeout_s: float) -> list[Failure]:
        """Asks all workers to end, waits for them, and kills those that exceed the timeout.

        Returns:
            Failures of workers that crashed meanwhile.
        """
        self._stop[0] = 1
        deadline = time.monotonic() + timeout_s
        failures: list[Failure] = []
        while self._processes and time.monotonic() < deadline:
            failures += self.wait(deadline - time.monotonic())
        self.kill()
        return failures

    def kill(self) -> None:
        """Kills all workers that still run, at once. They hold no locks."""
        for each in self._processes.values():
            each.process.kill()
        for each in self._processes.values():
            each.process.join()
        self._reap(list(self._processes))


def _stack(worker: _Process) -> str:
    """Stack of a process, written by faulthandler, even if the interpreter is blocked."""
    if hasattr(signal, "SIGUSR1"):
        with contextlib.suppress(OSError):
            os.kill(worker.process.pid, signal.SIGUSR1)
            return _read(worker.tracebacks, _ANSWER_WITHIN_S)
    return ""


def _read(tracebacks: Connection, within_s: float) -> str:
    """Reads a traceback that arrives in pieces, each within `within_s` seconds."""
    text = b""
    while tracebacks.poll(within_s) and len(text) < _TEXT_BYTES:
        piece = os.read(tracebacks.fileno(), _TEXT_BYTES)
        if not piece:
            break
        text += piece
    return text.decode(errors="replace")


@contextlib.contextmanager
def _in_children(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables of the processes that are started in this context."""
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
        yield  # only the main thread may set signal handlers
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
