"""Environment in a child process, with observations in shared memory."""

import contextlib
import ctypes
import math
import select
import time
from collections.abc import Callable
from multiprocessing import sharedctypes
from multiprocessing.connection import Connection
from typing import Any, SupportsFloat, TypeAlias

import numpy as np
from gymnasium import Space
from gymnasium.vector.utils import batch_space, create_empty_array, iterate

from hogwild_rl.envs import make
from hogwild_rl.hogwild import child, processes
from hogwild_rl.hogwild.child import Child, Failure


class SharedObservations:
    """Shared-memory observations of B environments, without a lock: each row has one writer.

    Child processes that receive it as an argument share its memory.

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
        write_observation(self.arrays, b, observation)

    def clear(self, b: int) -> None:
        """Fills row b with zeros, since a killed process may have left it half written."""
        zeros = create_empty_array(self._space, 1)
        self.write(b, next(iter(iterate(batch_space(self._space, 1), zeros))))


def write_observation(arrays: Any, b: int, observation: Any) -> None:
    """Writes an environment's observation to row b of a batch."""
    if isinstance(arrays, np.ndarray):
        arrays[b] = observation
    elif isinstance(arrays, tuple):
        for array, part in zip(arrays, observation, strict=True):
            write_observation(array, b, part)
    else:
        for key, array in arrays.items():
            write_observation(array, b, observation[key])


Outcome: TypeAlias = tuple[SupportsFloat, bool, bool, dict[str, Any]]
"""Reward, terminated, truncated and used info; sent after the observation is in shared memory."""

_LONGEST_TIMEOUT_S = 1e6  # in milliseconds it fits a C int


def used_info(info: dict[str, Any]) -> dict[str, Any]:
    """Entries of an info that training uses; others may be unfit for merging or pickling."""
    return {"lives": info["lives"]} if isinstance(info.get("lives"), int | np.integer) else {}


class EnvironmentFailedError(RuntimeError):
    """Crash, exception or hang of an environment's process.

    Attributes:
        failure: the process's failure.
        steps: number of steps of this process.
    """

    def __init__(self, failure: Failure, steps: int) -> None:
        super().__init__(str(failure))
        self.failure, self.steps = failure, steps


class EnvProcess:
    """Parent's handle of a child process that makes, resets and steps one environment.

    Args:
        index, make: index of the environment, and picklable function that makes it.
        observations, b: shared observations of all environments, and the row of this one.
        timeout_s: seconds without an outcome after which the process counts as hung.
        seeds: seed and key of the process's global generators.

    Attributes:
        pipe: receives the outcomes.
    """

    def __init__(
        self,
        index: int,
        make: Callable[[], make.Env],
        observations: SharedObservations,
        b: int,
        timeout_s: float,
        seeds: tuple[int, ...],
    ) -> None:
        self.pipe, commands = child.CONTEXT.Pipe()
        self._child = Child("environment", index, _serve, make, observations, b, commands, seeds)
        commands.close()
        self._timeout_s = min(timeout_s, _LONGEST_TIMEOUT_S)
        self._poll = _waiter(self.pipe)
        self._sent_s, self._stepping, self._steps = time.monotonic(), False, 0

    def ask(self, resets: bool, argument: Any) -> None:
        """Sends a reset with keyword arguments, or a step with an action.

        Raises:
            EnvironmentFailedError: the process has exited.
        """
        self._sent_s, self._stepping = time.monotonic(), not resets
        with contextlib.suppress(OSError):  # a chained error would hold the message's buffer
            self.pipe.send((resets, argument))
            return
        raise self.failed()

    def receive(self, wait: bool = True) -> Outcome | None:
        """Receives the outcome of the last `ask`; None if not `wait` and it is not available.

        Raises:
            EnvironmentFailedError: the process has exited, or hung and was killed.
        """
        left_s = max(self._sent_s + self._timeout_s - time.monotonic(), 0.0)
        try:
            if self._poll(left_s if wait else 0.0):
                outcome: Outcome = self.pipe.recv()
                self._steps += self._stepping
                return outcome
        except (EOFError, OSError) as error:
            raise self.failed() from error
        if wait or left_s == 0:
            raise self._failed(self._child.kill_hung(time.monotonic() - self._sent_s))
        return None

    @property
    def server(self) -> int:
        """Id of its fork server, or 0."""
        return self._child.server

    def failed(self) -> EnvironmentFailedError:
        """Describes how the process has failed; it no longer runs."""
        return self._failed(self._child.failure())

    def close(self, within_s: float) -> None:
        """Joins the process, which closes its environment as its pipe is closed; or kills it."""
        self._child.process.join(within_s)
        self._child.close()

    def _failed(self, failure: Failure) -> EnvironmentFailedError:
        self.pipe.close()
        return EnvironmentFailedError(failure, self._steps)


def _waiter(pipe: Connection) -> Callable[[float], bool]:
    """Returns a pipe's `poll`, seven times as fast on platforms with `select.poll`."""
    if not hasattr(select, "poll"):
        return pipe.poll
    poll = select.poll()
    poll.register(pipe.fileno(), select.POLLIN)
    return lambda timeout_s: bool(poll.poll(1e3 * timeout_s))


def _serve(
    make: Callable[[], make.Env],
    observations: SharedObservations,
    b: int,
    commands: Connection,
    seeds: tuple[int, ...],
) -> None:
    """Makes an environment, and resets and steps it until the pipe is closed."""
    with processes.seeded_globally(*seeds), contextlib.closing(make()) as env:
        _step_until_closed(env, observations, b, commands)


def _step_until_closed(
    env: make.Env, observations: SharedObservations, b: int, commands: Connection
) -> None:
    while True:
        try:
            resets, argument = commands.recv()
        except (EOFError, OSError):  # the parent has closed the pipe, or exited
            return
        outcome: list[Any] = [0.0, False, False]
        if resets:
            observation, info = env.reset(**argument)
        else:
            observation, *outcome, info = env.step(argument)
        observations.write(b, observation)
        try:
            commands.send((*outcome, used_info(info)))
        except OSError:
            return
