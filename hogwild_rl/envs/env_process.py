"""One environment in a process of its own, with observations in shared memory."""

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
    """A row of observations for each of B environments, without a lock: each row has one writer.

    A process that is started with it as an argument sees the same rows.

    Args:
        space: of one environment.
        num_envs: B.

    Attributes:
        arrays: as gymnasium batches them, [B, ...] each.
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
        """Puts an environment's observation into its row."""
        _put(self.arrays, b, observation)

    def clear(self, b: int) -> None:
        """Fills a row with zeros, whatever a process left there that was killed while it wrote."""
        nothing = create_empty_array(self._space, 1)
        self.write(b, next(iter(iterate(batch_space(self._space, 1), nothing))))


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
"""Reward, terminated, truncated and info; the observation is in shared memory by then."""

_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_ENDING_TIMEOUT_S = 5.0  # for a process that has let go of its pipe
_ANSWER_WITHIN_S = 0.5
_LONGEST_TIMEOUT_S = 1e6  # that milliseconds in a C int can count
_TEXT_BYTES = 32_768  # well below a pipe's buffer: a failing process never waits for its reader


class EnvironmentFailedError(RuntimeError):
    """The process of an environment died, raised or hung.

    Attributes:
        environment: its number.
        exit_code: of its process; negative where a signal killed it.
        traceback: of what it raised, or of where it crashed or hung; empty where nobody knows.
        silent_s: how long it had not answered, where it was killed for that.
        steps: that this process had taken.
    """

    def __init__(
        self, environment: int, exit_code: int, traceback: str, silent_s: float, steps: int
    ) -> None:
        super().__init__(f"environment {environment}, exit code {exit_code}: {traceback}")
        self.environment, self.exit_code, self.traceback = environment, exit_code, traceback
        self.silent_s, self.steps = silent_s, steps


class EnvProcess:
    """The parent's end of a process that makes an environment and does what it is printed.

    Args:
        number: of the environment, for messages.
        make: it; picklable.
        observations: of all environments.
        b: its row there.
        timeout_s: within which it answers, or it hangs.

    Attributes:
        pipe: through which it answers.
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
        self._answered = _waiter(self.pipe)
        self._asked_s, self._stepping, self._steps = time.monotonic(), False, 0

    def ask(self, resets: bool, argument: Any) -> None:
        """Has it reset, with these keywords, or step, with this action.

        Raises:
            EnvironmentFailedError: the process has ended.
        """
        self._asked_s, self._stepping = time.monotonic(), not resets
        try:
            self.pipe.send((resets, argument))
        except OSError as severed:
            raise self._ended() from severed

    def receive(self, patiently: bool = True) -> Outcome | None:
        """The outcome of what was asked.

        Args:
            patiently: whether to wait for it; without that it is None where it is not there yet.

        Raises:
            EnvironmentFailedError: the process has ended, or was killed because it hangs.
        """
        left_s = max(self._asked_s + self._timeout_s - time.monotonic(), 0.0)
        try:
            if self._answered(left_s if patiently else 0.0):
                outcome: Outcome = self.pipe.recv()
                self._steps += self._stepping
                return outcome
        except (EOFError, OSError) as severed:
            raise self._ended() from severed
        if patiently or left_s == 0:
            raise self._hangs()
        return None

    def kill(self) -> None:
        """Ends the process, whatever it does; it holds nothing that could be lost."""
        self._process.kill()

    def close(self) -> None:
        """Waits until it has been killed, and lets go of what belongs to it."""
        self._process.join()
        self._process.close()
        self.pipe.close()
        self._texts.close()

    def _ended(self) -> EnvironmentFailedError:
        self._process.join(_ENDING_TIMEOUT_S)
        return self._failure(self._told(0.0), 0.0)

    def _hangs(self) -> EnvironmentFailedError:
        silent_s = time.monotonic() - self._asked_s
        where = ""
        if hasattr(signal, "SIGUSR1"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGUSR1)
            where = self._told(_ANSWER_WITHIN_S)  # one that is stopped cannot tell
        return self._failure(where, silent_s)

    def _failure(self, text: str, silent_s: float) -> EnvironmentFailedError:
        self.kill()
        self._process.join()
        exit_code = self._process.exitcode
        self.close()
        return EnvironmentFailedError(self._number, exit_code, text, silent_s, self._steps)

    def _told(self, within_s: float) -> str:
        """What it wrote of how it failed, each piece if it comes in time."""
        text = b""
        with contextlib.suppress(OSError):
            while len(text) < _TEXT_BYTES and self._texts.poll(within_s):
                piece = os.read(self._texts.fileno(), _TEXT_BYTES)
                if not piece:
                    break
                text += piece
        return text.decode(errors="replace").strip()


def _waiter(pipe: Connection) -> Callable[[float], bool]:
    """A pipe's own `poll`, in a seventh of the time where the platform lets us prepare it."""
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
    """What the process of an environment does, from its first instruction of ours to its last.

    It ignores Ctrl-C, which is the parent's to handle, and leaves when the parent is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    if hasattr(faulthandler, "register"):
        faulthandler.enable(texts.fileno())
        faulthandler.register(signal.SIGUSR1, texts.fileno())  # asked where it hangs, it answers
    try:
        _serve(make(), observations, b, commands)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the parent is gone
            text = traceback.format_exc().encode(errors="replace")
            os.write(texts.fileno(), text[-_TEXT_BYTES:])
        # Leaving early is a failure even with sys.exit(0).
        sys.exit((isinstance(error, SystemExit) and error.code) or 1)


def _serve(env: make.Env, observations: SharedObservations, b: int, commands: Connection) -> None:
    while True:
        try:
            resets, argument = commands.recv()
        except (EOFError, OSError):  # the parent is gone
            return
        if resets:
            observation, info = env.reset(**argument)
            outcome: Outcome = 0.0, False, False, info
        else:
            observation, reward, terminated, truncated, info = env.step(argument)
            outcome = reward, terminated, truncated, info
        observations.write(b, observation)
        commands.send(outcome)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
