"""Environments in processes of their own: those that die, raise or hang are replaced."""

import multiprocessing.connection
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

from hogwild_rl.envs import make
from hogwild_rl.envs.env_process import (
    EnvironmentFailedError,
    EnvProcess,
    Outcome,
    SharedObservations,
)

_LOOK_EVERY_S = 0.05


def raise_failure(failure: EnvironmentFailedError) -> float:
    """Raises it: no environment is replaced."""
    raise failure


def lost(envs: VectorEnv[Any, Any, Any]) -> make.Array:
    """Where there was no outcome in the last reset or step, [B] bool, overwritten by the next.

    Only environments in processes of their own can be without one.
    """
    return envs.lost if isinstance(envs, ProcessVectorEnv) else np.zeros(envs.num_envs, bool)


class ProcessVectorEnv(VectorEnv[Any, Any, Any]):
    """Environments that step at the same time, with NEXT_STEP autoreset.

    Their processes are forked from a server that has not run torch, or spawned. Observations come
    back through shared memory, all else through a pipe for each, so that no process holds anything
    that another waits for.

    An environment whose process fails is lost: it has no outcome in that step, nor in those that
    follow until a new process has reset it. The step with which it comes back is one that only
    resets. The others go on meanwhile; where there are none, the first to be back is waited for.

    Args:
        make: one environment; picklable.
        num_envs: B ≥ 1.
        first: number of the first environment, for messages.
        failed: called with every failure; returns the seconds until a replacement starts, or
            raises, and then so does `reset` or `step`.
        step_timeout_s: seconds after which an environment that has not answered hangs.

    Attributes:
        lost: where there was no outcome in the last reset or step, [B] bool, overwritten by the
            next; rewards and flags are 0 there, and observations say nothing.
    """

    def __init__(
        self,
        make: Callable[[], make.Env],
        num_envs: int,
        first: int = 0,
        failed: Callable[[EnvironmentFailedError], float] = raise_failure,
        step_timeout_s: float = 60.0,
    ) -> None:
        self._hosts: dict[int, EnvProcess] = {}
        single = make()
        self.metadata = {**single.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = single.observation_space
        self.single_action_space = single.action_space
        single.close()
        self.num_envs = num_envs
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.lost = np.zeros(num_envs, dtype=bool)
        self._make, self._first, self._failed = make, first, failed
        self._step_timeout_s = step_timeout_s
        self._observations = SharedObservations(self.single_observation_space, num_envs)
        self._autoreset_envs = np.zeros(num_envs, dtype=bool)  # as SyncVectorEnv calls them
        self._seed: int | None = None
        self._replaced = [0] * num_envs
        self._coming: set[int] = set()  # new processes whose first reset is not over
        self._due_s: dict[int, float] = {}  # when there will be a new process

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Resets all, with `seed`, `seed` + 1, ...; the first one starts their processes."""
        self._seed = self._seed if seed is None else seed
        for b in range(self.num_envs):
            own = {"seed": None if seed is None else seed + b, "options": options}
            if b in self._hosts and b not in self._coming:
                self._ask(b, True, own)
            elif b not in self._hosts and b not in self._due_s:
                self._start(b, own)
        return self._observations.arrays, self._receive()[-1]

    def step(self, actions: make.Array) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One step of all."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: make.Array) -> None:
        """Starts a step."""
        self._replace()
        for b, action in enumerate(iterate(self.action_space, actions)):
            if b in self._hosts and b not in self._coming:
                resets = bool(self._autoreset_envs[b])
                self._ask(b, resets, {} if resets else action)

    def step_wait(self) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Waits for its outcome."""
        return self._observations.arrays, *self._receive()

    def close_extras(self, **kwargs: Any) -> None:
        """Ends the processes."""
        del kwargs
        for host in self._hosts.values():
            host.kill()
        for host in self._hosts.values():
            host.close()
        self._hosts.clear()

    def _start(self, b: int, reset: dict[str, Any]) -> None:
        number, timeout_s = self._first + b, self._step_timeout_s
        try:
            self._hosts[b] = EnvProcess(number, self._make, self._observations, b, timeout_s)
        except (OSError, EOFError) as error:  # no file or process is left; the server failed
            text = f"its process cannot be started ({error})"
            self._lose(b, EnvironmentFailedError(number, 1, text, silent_s=0.0, steps=0))
        else:
            self._ask(b, True, reset)

    def _ask(self, b: int, resets: bool, argument: Any) -> None:
        try:
            self._hosts[b].ask(resets, argument)
        except EnvironmentFailedError as failure:
            self._lose(b, failure)

    def _receive(self) -> tuple[make.Array, make.Array, make.Array, dict[str, Any]]:
        """Rewards, ends and infos of those that were asked, and of those that are back."""
        B = self.num_envs
        rewards, terminated, truncated = np.zeros(B), np.zeros(B, bool), np.zeros(B, bool)
        infos: dict[str, Any] = {}
        nobody = self.lost.all()  # could be asked
        self.lost[:] = True
        while True:
            for b in list(self._hosts):
                outcome = self._outcome(b)
                if outcome is not None:
                    rewards[b], terminated[b], truncated[b], info = outcome
                    infos = self._add_info(infos, info, b)
                    self.lost[b] = False
            self._replace()
            if not (nobody and self.lost.all()):
                break
            pipes = [host.pipe for host in self._hosts.values()]
            multiprocessing.connection.wait(pipes, _LOOK_EVERY_S)
        np.logical_or(terminated, truncated, out=self._autoreset_envs)
        return rewards, terminated, truncated, infos

    def _outcome(self, b: int) -> Outcome | None:
        try:
            outcome = self._hosts[b].receive(patiently=b not in self._coming)
        except EnvironmentFailedError as failure:
            self._lose(b, failure)
            return None
        if outcome is not None:
            self._coming.discard(b)
        return outcome

    def _lose(self, b: int, failure: EnvironmentFailedError) -> None:
        self._hosts.pop(b, None)
        self._coming.discard(b)
        self._observations.clear(b)
        self._due_s[b] = time.monotonic() + self._failed(failure)

    def _replace(self) -> None:
        """Starts the processes that are due, with seeds of their own."""
        for b, due_s in list(self._due_s.items()):
            if due_s <= time.monotonic():
                del self._due_s[b]
                self._replaced[b] += 1
                own = np.random.SeedSequence(self._seed, spawn_key=(b, self._replaced[b]))
                self._coming.add(b)
                self._start(b, {"seed": int(own.generate_state(1)[0]) >> 1})
