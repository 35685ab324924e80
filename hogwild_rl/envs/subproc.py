"""Vector environment with one process per environment; failed processes are restarted."""

import functools
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
from hogwild_rl.hogwild import child, processes

_LOOK_EVERY_S = 0.05
_CLOSE_WITHIN_S = 1.0  # all environments together


def raise_failure(failure: EnvironmentFailedError) -> float:
    """Raises the failure, so that no environment is restarted."""
    raise failure


class ProcessVectorEnv(VectorEnv[Any, Any, Any]):
    """Vector environment with one process per environment, with NEXT_STEP autoreset.

    Processes are forked from a server that has not run torch, or spawned. Observations are
    returned in shared memory, everything else through one pipe per process; no locks are shared.

    An environment whose process fails is lost: it has no outcome in this step and the following
    ones until a new process has reset it. Its first step afterwards only resets. The other
    environments continue; if all are lost, a step waits for the first restarted one.

    Args:
        make, num_envs: picklable function that makes one environment, and their number B ≥ 1.
        first: index of the first environment, for messages.
        failed: called with every failure; returns the seconds until the restart, or raises, which
            `reset` and `step` propagate.
        step_timeout_s: seconds without an outcome after which an environment is killed as hung.

    Attributes:
        lost: mask [B] of environments without an outcome in the last reset or step, overwritten by
            the next; their rewards and flags are 0, their observations undefined.
        resetting: [B] bool, environments that their next step only resets.
    """

    def __init__(
        self,
        make: Callable[[], make.Env],
        num_envs: int,
        first: int = 0,
        failed: Callable[[EnvironmentFailedError], float] = raise_failure,
        step_timeout_s: float = 60.0,
    ) -> None:
        self._processes: dict[int, EnvProcess] = {}
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
        self.resetting = np.zeros(num_envs, dtype=bool)
        self._seed: int | None = None
        self._restarts = [0] * num_envs
        self._starting: set[int] = set()  # restarted, first reset not finished
        self._restart_at_s: dict[int, float] = {}  # restart times

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Resets with seeds `seed`, `seed` + 1, ...; the first call starts the processes."""
        self._seed = self._seed if seed is None else seed
        for b in range(self.num_envs):
            own = {"seed": None if seed is None else seed + b, "options": options}
            if b in self._processes and b not in self._starting:
                self._send(b, True, own)
            elif b not in self._processes and b not in self._restart_at_s:
                self._start(b, own)
        return self._observations.arrays, self._receive()[-1]

    def step(self, actions: make.Array) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Steps all environments."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: make.Array) -> None:
        """Starts a step."""
        self._drop_orphans()
        self._restart_due()
        for b, action in enumerate(iterate(self.action_space, actions)):
            if b in self._processes and b not in self._starting:
                resets = bool(self.resetting[b])
                self._send(b, resets, {} if resets else action)

    def step_wait(self) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Waits for the step and returns its outcome."""
        return self._observations.arrays, *self._receive()

    def close_extras(self, **kwargs: Any) -> None:
        """Lets the processes close their environments, and kills those that take too long."""
        del kwargs
        deadline_s = time.monotonic() + _CLOSE_WITHIN_S
        for process in self._processes.values():
            process.pipe.close()
        for process in self._processes.values():
            process.close(max(deadline_s - time.monotonic(), 0.0))
        self._processes.clear()

    def _start(self, b: int, reset: dict[str, Any]) -> None:
        index, timeout_s = self._first + b, self._step_timeout_s
        processes.preload()
        try:
            seeds = (self._seed or 0, index, self._restarts[b])
            self._processes[b] = EnvProcess(
                index, self._make, self._observations, b, timeout_s, seeds
            )
        except (OSError, EOFError) as error:  # out of file handles or processes; server failure
            failure = child.start_failure("environment", index, error)
            self._record_failure(b, EnvironmentFailedError(failure, steps=0))
        else:
            self._send(b, True, reset)

    def _send(self, b: int, resets: bool, argument: Any) -> None:
        try:
            self._processes[b].ask(resets, argument)
        except EnvironmentFailedError as failure:
            self._record_failure(b, failure)

    def _receive(self) -> tuple[make.Array, make.Array, make.Array, dict[str, Any]]:
        """Rewards, terminated, truncated and infos of all environments with an outcome."""
        B = self.num_envs
        rewards, terminated, truncated = np.zeros(B), np.zeros(B, bool), np.zeros(B, bool)
        infos: dict[str, Any] = {}
        all_lost = self.lost.all()
        self.lost[:] = True
        while True:
            for b in list(self._processes):
                outcome = self._outcome(b)
                if outcome is not None:
                    rewards[b], terminated[b], truncated[b], info = outcome
                    infos = self._add_info(infos, info, b)
                    self.lost[b] = False
            self._restart_due()
            if not (all_lost and self.lost.all()):
                break
            pipes = [process.pipe for process in self._processes.values()]
            multiprocessing.connection.wait(pipes, _LOOK_EVERY_S)
        np.logical_or(terminated, truncated, out=self.resetting)
        return rewards, terminated, truncated, infos

    def _outcome(self, b: int) -> Outcome | None:
        try:
            outcome = self._processes[b].receive(wait=b not in self._starting)
        except EnvironmentFailedError as failure:
            self._record_failure(b, failure)
            return None
        if outcome is not None:
            self._starting.discard(b)
        return outcome

    def _record_failure(self, b: int, failure: EnvironmentFailedError) -> None:
        self._processes.pop(b, None)
        self._starting.discard(b)
        self._observations.clear(b)
        self._restart_at_s[b] = time.monotonic() + self._failed(failure)

    def _drop_orphans(self) -> None:
        """Records the failure of the processes whose fork server has ended; they may still run."""
        ended = functools.cache(child.server_exit_code)
        for b, process in list(self._processes.items()):
            if ended(process.server) is not None:
                self._record_failure(b, process.failed())

    def _restart_due(self) -> None:
        """Restarts the processes that are due, each with a new seed."""
        for b, restart_at_s in list(self._restart_at_s.items()):
            if restart_at_s <= time.monotonic():
                del self._restart_at_s[b]
                self._restarts[b] += 1
                own = np.random.SeedSequence(self._seed, spawn_key=(b, self._restarts[b]))
                self._starting.add(b)
                self._start(b, {"seed": int(own.generate_state(1)[0]) >> 1})
