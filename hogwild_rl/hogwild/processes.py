"""Worker processes: start, watch and stop. Like `child`, this module does not import torch."""

import contextlib
import dataclasses
import multiprocessing.connection
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import util
from typing import Any

import numpy as np

from hogwild_rl.hogwild import child, forkserver
from hogwild_rl.hogwild.child import Child, Failure


@dataclasses.dataclass(frozen=True)
class Worker:
    """Index, seed and stop flag of a worker: the first argument of every worker function.

    Attributes:
        index: 0 for the first worker.
        restart_index: 0 at the first start, 1 after a restart of this worker, and so on.
        seed: seed of the run, from which `random_seeds` are derived.
        should_stop: function that returns true once the parent has asked the workers to end.
    """

    index: int
    restart_index: int
    seed: int
    should_stop: Callable[[], Any]

    def random_seeds(self, count: int) -> list[int]:
        """Seeds below 2³¹, different for every worker and every restart."""
        key = (self.index, self.restart_index)
        sequence = np.random.SeedSequence(self.seed, spawn_key=key)
        return [int(word) >> 1 for word in sequence.generate_state(count)]


@contextlib.contextmanager
def seeded_globally(seed: int, *key: int) -> Iterator[None]:
    """Context in which the global generators of random, NumPy and torch depend on seed and key.

    The states of the caller are restored. User code, such as environments, may use them.
    """
    import torch

    random_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    torch_state = torch.get_rng_state()
    words = np.random.SeedSequence(seed, spawn_key=(*key, _GLOBAL)).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])  # noqa: NPY002
    torch.default_generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(random_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)


def _work(worker: Worker, target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Calls the worker function; it computes on one thread."""
    import torch

    os.environ.update(_ONE_THREAD)
    torch.set_num_threads(1)
    prepare_process()
    with seeded_globally(worker.seed, worker.index, worker.restart_index):
        target(worker, *arguments)


def prepare_process() -> None:
    """Retains freed memory, and flushes denormals in this thread.

    Denormals are slow, and averages of inactive units decay into them.
    """
    import torch

    from hogwild_rl.hogwild import shared_memory

    shared_memory.retain_freed_memory()
    for dtype in (np.float32, np.float64):
        np.finfo(dtype)  # NumPy 1.24 warns if it finds denormals flushed at their first use
    torch.set_flush_denormal(True)


_LONGEST_FOLDER = 70  # bytes; an address has 103, of which multiprocessing's names take 32
_GLOBAL = 1  # distinguishes these seeds from a worker's own
_MOST_REPLACEMENTS = 1 << 20  # of one worker in one run
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def preload(module: str = "") -> None:
    """Starts the server that workers are forked from, with a module already imported in it.

    It does nothing if the server runs.

    It returns at once; the import runs in parallel. The server is shared by the whole process: all
    its other children ignore Ctrl-C and compute on one thread too. If it cannot be started, no
    error is raised here, but by the start of the first worker.

    Args:
        module: dotted name of the module that defines the worker function; by default that of the
            last call, to restart the server if it has ended.
    """
    server = child.server_id()
    if child.METHOD != "forkserver" or (server and child.server_exit_code(server) is None):
        return
    from multiprocessing import forkserver as mp_forkserver

    known = mp_forkserver._forkserver._preload_modules  # type: ignore[attr-defined]
    if module or forkserver.__name__ not in known:
        mp_forkserver.set_forkserver_preload([forkserver.__name__, *filter(None, [module])])
    parent = {forkserver.VARIABLE: f"{os.getpid()} {_temporary_folder()}"}
    with (
        _in_children(parent | _ONE_THREAD),
        _ctrl_c_ignored_in_children(),
        contextlib.suppress(OSError),
    ):
        mp_forkserver.ensure_running()


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

        from hogwild_rl.hogwild import shared_memory

        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        self._target, self._arguments = target, tuple(arguments)
        self._count, self._seed = count, seed
        # Restarts per worker, counted from an offset that no other session of the run uses.
        self._restart_indices = [restart_index * _MOST_REPLACEMENTS] * count
        self._stop = shared_memory.zeros(1, dtype=torch.uint8)
        self._children: dict[int, Child] = {}
        self._not_started: list[Failure] = []  # as the server was killed

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
    def running(self) -> list[int]:
        """Indices of the workers whose end `wait` has not returned."""
        return [*self._children, *(failure.index for failure in self._not_started)]

    def _start(self, index: int) -> None:
        preload()
        worker = Worker(index, self._restart_indices[index], self._seed, self._stop.item)
        # A fork server has these since its start. Changing them here would affect other threads.
        try:
            with _in_children({} if child.METHOD == "forkserver" else _ONE_THREAD):
                self._children[index] = Child(
                    "worker", index, _work, worker, self._target, self._arguments
                )
        except (OSError, EOFError) as error:
            failure = child.start_failure("worker", index, error)
            if not failure.server:
                raise
            self._not_started.append(failure)

    def replace(self, index: int) -> None:
        """Restarts a worker that has ended, with new seeds."""
        assert index not in self._children, f"worker {index} is still running"
        self._restart_indices[index] += 1
        self._start(index)

    def kill_hung(self, index: int, silent_s: float) -> Failure:
        """Kills a hung worker and returns its failure, with its stack."""
        return self._children.pop(index).kill_hung(silent_s)

    def wait(self, timeout_s: float) -> list[Failure]:
        """Waits until a worker ends or the timeout expires; returns the failures."""
        failures, self._not_started = self._not_started, []
        if self._children and not failures:
            sentinels = [each.process.sentinel for each in self._children.values()]
            multiprocessing.connection.wait(sentinels, timeout_s)
        ended = [i for i, each in self._children.items() if each.process.exitcode is not None]
        failures += [self._children.pop(index).failure() for index in ended]
        return [failure for failure in failures if failure.exit_code != 0]

    def stop(self, timeout_s: float) -> list[Failure]:
        """Asks all workers to end, kills those that exceed the timeout, returns the failures."""
        self._stop[0] = 1
        deadline = time.monotonic() + timeout_s
        failures: list[Failure] = []
        while self._children and time.monotonic() < deadline:
            failures += self.wait(deadline - time.monotonic())
        self.kill()
        return failures

    def kill(self) -> None:
        """Kills all workers that still run, at once. They hold no locks."""
        for each in self._children.values():
            each.process.kill()
        for each in self._children.values():
            each.close()
        self._children.clear()


def _temporary_folder() -> str:
    """Folder of multiprocessing's sockets; in /tmp if $TMPDIR is too long for their addresses."""
    before, folder = tempfile.tempdir, tempfile.gettempdir()
    try:
        tempfile.tempdir = folder if len(os.fsencode(folder)) <= _LONGEST_FOLDER else "/tmp"  # noqa: S108
        return util.get_temp_dir()
    finally:
        tempfile.tempdir = before


@contextlib.contextmanager
def _in_children(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables of the processes that are started in this context.

    Contexts of several threads may overlap: each restores what it has changed.
    """
    current = {name: os.environ.get(name) for name in variables}
    before = {name: value for name, value in current.items() if value != variables[name]}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None or name == forkserver.VARIABLE:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


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
