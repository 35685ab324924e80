"""Environments in processes of their own, watched: one that dies or raises is named."""

import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import _async_worker

from hogwild_rl.envs import vector

_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_ENDING_TIMEOUT_S = 5.0
_SEVERED = (EOFError, BrokenPipeError, ConnectionResetError)


class EnvironmentFailedError(RuntimeError):
    """The process of an environment died or raised.

    Attributes:
        environment: its number.
        exit_code: of its process; negative where a signal killed it.
        traceback: of what it raised, or empty.
    """

    def __init__(self, environment: int, exit_code: int, traceback: str) -> None:
        super().__init__(f"environment {environment}, exit code {exit_code}: {traceback}")
        self.environment, self.exit_code, self.traceback = environment, exit_code, traceback


class ProcessVectorEnv(AsyncVectorEnv):
    """Gymnasium's AsyncVectorEnv, with processes that are watched.

    They are forked from a server that has not run torch, or spawned; they leave Ctrl-C to the
    parent, and end when it does. Observations come back through shared memory.

    Args:
        makers: one per environment, picklable.
        first: number of the first environment, for messages.

    Raises:
        EnvironmentFailedError: in the constructor, `reset` and `step`.
    """

    def __init__(self, makers: Sequence[Callable[[], vector.Env]], first: int = 0) -> None:
        self._first = first
        self.parent_pipes, self.processes = [], []  # for close_extras, should the start fail
        worker: Any = _live  # its declared type is that of an older form
        try:
            with self._guarded():
                super().__init__(
                    makers,
                    shared_memory=True,
                    copy=False,  # the rollout copies
                    context=_METHOD,
                    worker=worker,
                    autoreset_mode=AutoresetMode.NEXT_STEP,
                )
        except BaseException:
            self.close_extras()
            raise

    def reset_wait(self, timeout: float | None = None) -> tuple[Any, dict[str, Any]]:
        """As gymnasium's."""
        with self._guarded():
            return super().reset_wait(timeout)

    def step_async(self, actions: Any) -> None:
        """As gymnasium's."""
        with self._guarded():
            super().step_async(actions)

    def step_wait(self, timeout: float | None = None) -> tuple[Any, ...]:
        """As gymnasium's."""
        with self._guarded():
            return super().step_wait(timeout)

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """Ends the processes, whatever they do; they hold nothing that could be lost."""
        del timeout, terminate
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        for pipe in self.parent_pipes:
            pipe.close()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except _SEVERED as error:
            sentinels = [process.sentinel for process in self.processes]
            multiprocessing.connection.wait(sentinels, _ENDING_TIMEOUT_S)
            for index, process in enumerate(self.processes):
                if process.exitcode is not None:
                    raise self._failure(index, "") from error
            raise

    def _raise_if_errors(self, successes: Any) -> None:
        """Gymnasium calls it with whether each environment's command succeeded."""
        if not all(successes):
            index, _, _, traceback = self.error_queue.get(timeout=_ENDING_TIMEOUT_S)
            raise self._failure(index, traceback)

    def _failure(self, index: int, traceback: str) -> EnvironmentFailedError:
        process = self.processes[index]
        process.join(_ENDING_TIMEOUT_S)
        return EnvironmentFailedError(self._first + index, process.exitcode or 0, traceback)


class _Errors:
    """The queue of tracebacks, as a worker sees it: it remembers that there was one."""

    def __init__(self, queue: Any) -> None:
        self._queue, self.any = queue, False

    def put(self, error: tuple[int, type[BaseException], str, str]) -> None:
        """Sends a traceback, unless nobody is left to read it."""
        self.any = True
        parent = multiprocessing.parent_process()
        if parent is not None and parent.is_alive():
            self._queue.put(error)


def _live(
    index: int,
    make: Callable[[], vector.Env],
    pipe: Any,
    parent_pipe: Any,
    memory: Any,
    queue: Any,
    autoreset_mode: AutoresetMode,
    semaphore: Any,
) -> None:
    """What the process of an environment does: gymnasium's loop, with an exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    errors: Any = _Errors(queue)
    with contextlib.suppress(*_SEVERED):  # the parent is gone
        _async_worker(index, make, pipe, parent_pipe, memory, errors, autoreset_mode, semaphore)
    sys.exit(1 if errors.any else 0)
