"""Environment in a child process, with observations in shared memory."""

import contextlib
import ctypes
import faulthandler
import math
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing import sharedctypes
from multiprocessing.connection import Connection
from typing import Any, SupportsFloat, TypeAlias

import numpy as np
from gymnasium import Space
from gymnasium.vector.utils import batch_space, create_empty_array, iterate

from hogwild_rl.envs import make


class SharedObservations:
    """Shared-memory observations of B environments, without a lock: each row has one writer.

    Child processes that receive it as an argument share its memory.

    Args:
        space: observation space of one environment.
        num_envs: number of environments B.

    Attributes:
        arrays: observations as batched by gymnasium, [B, ...] each.
    """

    def __init__(self, space: Space[Any], num_envs: int) -> None:
        self._space, self._num_envs = space, num_envs
        self._buffers: list[Any] = []
        self.arrays = create_empty_array(space, num_envs, self._allocated)

    def _allocated(self, shape: tuple[int, ...], dtype: Any) -> "np.ndarray[Any, Any]":
        size = math.prod(shape) * np.dtype(dtype).itemsize
        self._buffers.append(sharedctypes.RawArray(ctypes.c_byte, size))
        return np.frombuffer(self._buffers[-1], dtype).reshape(shape)

    def __getstate__(self) -> tuple[Space[Any], int, list[Any]]:
        return self._space, self._num_envs, self._buffers

    def __setstate__(self, state: tuple[Space[Any], int, list[Any]]) -> None:
        self._space, self._num_envs, self._buffers = state
        buffers = iter(self._buffers)
        self.arrays = create_empty_array(
            self._space,
            self._num_envs,
            lambda shape, dtype: np.frombuffer(next(buffers), dtype).reshape(shape),
        )

    def write(self, b: int, observation: Any) -> None:
        """Writes an environment's observation to row b."""
        _put(self.arrays, b, observation)

    def clear(self, b: int) -> None:
        """Fills row b with zeros, since a killed process may have left it half written."""
        zeros = create_empty_array(self._space, 1)
        self.write(b, next(iter(iterate(batch_space(self._space, 1), zeros))))


def _put(arrays: Any, b: int, observation: Any) -> None:
    if isinstance(arrays, np.ndarray):
        arrays[b] = observation
    elif isinstance(arrays, tuple):
        for array, part in zip(arrays, observation, strict=True):
            _put(array, b, part)
    else:
        for key, array in arrays.items():
            _put(array, b, observation[key])


Outcome: TypeAlias = tuple[SupportsFloat, bool, bool, dict[str, Any]]
"""Reward, terminated, truncated and info; sent after the observation is in shared memory."""

_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_ENDING_TIMEOUT_S = 5.0  # for a process that has closed its pipe
_ANSWER_WITHIN_S = 0.5
_LONGEST_TIMEOUT_S = 1e6  # in milliseconds it fits a C int
_TEXT_BYTES = 32_768  # well below a pipe's buffer: writing a traceback never blocks


class EnvironmentFailedError(RuntimeError):
    """Crash, exception or hang of an environment's process.

    Attributes:
        environment: index of the environment.
        exit_code: exit code of the process; −n if signal n killed it.
        traceback: traceback of the exception, crash or hang; empty if unknown.
        silent_s: seconds without an outcome before the process was killed as hung; 0 otherwise.
        steps: number of steps of this process.
    """

    def __init__(
        self, environment: int, exit_code: int, traceback: str, silent_s: float, steps: int
    ) -> None:
        super().__init__(f"environment {environment}, exit code {exit_code}: {traceback}")
        self.environment, self.exit_code, self.traceback = environment, exit_code, traceback
        self.silent_s, self.steps = silent_s, steps


class EnvProcess:
    """Parent's handle of a child process that makes, resets and steps one environment.

    Args:
        number: index of the environment, for messages.
        make: makes the environment; picklable.
        observations: shared observations of all environments.
        b: row of this environment in `observations`.
        timeout_s: seconds without an outcome after which the process counts as hung.

    Attributes:
        pipe: receives the outcomes.
    """

    def __init__(
        self,
        number: int,
        make: Callable[[], make.Env],
        observations: SharedObservations,
        b: int,
        timeout_s: float,
    ) -> None:
        context: Any = multiprocessing.get_context(_METHOD)
        self.pipe, pipe = context.Pipe()
        self._texts, texts = context.Pipe(duplex=False)
        self._process = context.Process(
            target=child_main,
            args=(make, observations, b, pipe, texts),
            name=f"environment {number}",
            daemon=True,
        )
        self._process.start()
        pipe.close()
        texts.close()
        self._number, self._timeout_s = number, min(timeout_s, _LONGEST_TIMEOUT_S)
        self._poll = _waiter(self.pipe)
        self._sent_s, self._stepping, self._steps = time.monotonic(), False, 0

    def ask(self, resets: bool, argument: Any) -> None:
        """Sends a reset with keyword arguments, or a step with an action.

        Raises:
            EnvironmentFailedError: the process has exited.
        """
        self._sent_s, self._stepping = time.monotonic(), not resets
        try:
            self.pipe.send((resets, argument))
        except OSError as error:
            raise self._exited() from error

    def receive(self, patiently: bool = True) -> Outcome | None:
        """Receives the outcome of the last `ask`.

        Args:
            patiently: True to wait for the outcome, False to return None if it is not available.

        Raises:
            EnvironmentFailedError: the process has exited, or hung and was killed.
        """
        left_s = max(self._sent_s + self._timeout_s - time.monotonic(), 0.0)
        try:
            if self._poll(left_s if patiently else 0.0):
                outcome: Outcome = self.pipe.recv()
                self._steps += self._stepping
                return outcome
        except (EOFError, OSError) as error:
            raise self._exited() from error
        if patiently or left_s == 0:
            raise self._kill_hung()
        return None

    def kill(self) -> None:
        """Kills the process; it has no state to save."""
        self._process.kill()

    def close(self) -> None:
        """Joins the killed process and closes its pipes."""
        self._process.join()
        self._process.close()
        self.pipe.close()
        self._texts.close()

    def _exited(self) -> EnvironmentFailedError:
        self._process.join(_ENDING_TIMEOUT_S)
        return self._failure(self._read_traceback(0.0), 0.0)

    def _kill_hung(self) -> EnvironmentFailedError:
        silent_s = time.monotonic() - self._sent_s
        where = ""
        if hasattr(signal, "SIGUSR1"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGUSR1)
            where = self._read_traceback(_ANSWER_WITHIN_S)  # empty for a process in SIGSTOP
        return self._failure(where, silent_s)

    def _failure(self, text: str, silent_s: float) -> EnvironmentFailedError:
        self.kill()
        self._process.join()
        exit_code = self._process.exitcode
        self.close()
        return EnvironmentFailedError(self._number, exit_code, text, silent_s, self._steps)

    def _read_traceback(self, within_s: float) -> str:
        """Reads the process's traceback, waiting at most `within_s` for each chunk."""
        text = b""
        with contextlib.suppress(OSError):
            while len(text) < _TEXT_BYTES and self._texts.poll(within_s):
                chunk = os.read(self._texts.fileno(), _TEXT_BYTES)
                if not chunk:
                    break
                text += chunk
        return text.decode(errors="replace").strip()


def _waiter(pipe: Connection) -> Callable[[float], bool]:
    """Returns a pipe's `poll`, seven times as fast on platforms with `select.poll`."""
    if not hasattr(select, "poll"):
        return pipe.poll
    poll = select.poll()
    poll.register(pipe.fileno(), select.POLLIN)
    return lambda timeout_s: bool(poll.poll(1e3 * timeout_s))


def child_main(
    make: Callable[[], make.Env],
    observations: SharedObservations,
    b: int,
    commands: Connection,
    texts: Connection,
) -> None:
    """Main function of an environment's process.

    It ignores Ctrl-C, which the parent handles, and exits when the parent has exited.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    if hasattr(faulthandler, "register"):
        faulthandler.enable(texts.fileno())
        faulthandler.register(signal.SIGUSR1, texts.fileno())  # prints the traceback of a hang
    try:
        _serve(make(), observations, b, commands)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the parent has exited
            text = traceback.format_exc().encode(errors="replace")
            os.write(texts.fileno(), text[-_TEXT_BYTES:])
        # Every early exit is a failure, also sys.exit(0).
        sys.exit((isinstance(error, SystemExit) and error.code) or 1)


def _serve(env: make.Env, observations: SharedObservations, b: int, commands: Connection) -> None:
    while True:
        try:
            resets, argument = commands.recv()
        except (EOFError, OSError):  # the parent has exited
            return
        if resets:
            observation, info = env.reset(**argument)
            outcome: Outcome = 0.0, False, False, info
        else:
            observation, reward, terminated, truncated, info = env.step(argument)
            outcome = reward, terminated, truncated, info
        observations.write(b, observation)
        commands.send(outcome)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
