"""Restarts workers that crash or hang; the others keep training."""

import collections
import time
from collections.abc import Sequence

from hogwild_rl.hogwild.child import Failure
from hogwild_rl.hogwild.counters import Counters
from hogwild_rl.hogwild.processes import Workers

_HOUR_S = 3600.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 60.0
_HOPELESS = 2  # failures in a row of every process without progress: the run is given up


class Restarts:
    """Restart rules for numbered processes that crash or hang.

    A process that fails before it has made progress is restarted after a pause, which doubles each
    time. If every process fails so repeatedly, the run is given up. The end of the fork server ends
    all processes; it counts once, and as no failure of theirs.

    Args:
        indices: indices of the processes.
        max_restarts: restarts per process or server and hour; 0 gives up at the first failure.
        progress: progress of a process in messages, as a participle: "counted a step".

    Attributes:
        give_up_reason: reason to give up the run; empty while it should continue.
    """

    def __init__(
        self, indices: Sequence[int], max_restarts: int, progress: str = "counted a step"
    ) -> None:
        self._max_restarts, self._progress = max_restarts, progress
        self._failures = dict.fromkeys(indices, 0)  # failures in a row without progress
        self._restart_times_s = collections.defaultdict[str, collections.deque[float]](
            collections.deque
        )
        self._servers: set[int] = set()  # ids of those that have ended
        self.give_up_reason = ""

    def is_recorded(self, failure: Failure) -> bool:
        """True if it is the end of a server that was recorded with the failure of another."""
        return failure.server in self._servers

    def pause_s(self, failure: Failure, progressed: bool) -> float:
        """Records a failure of one of the processes and returns the seconds until its restart.

        Args:
            failure: failure of one of the processes.
            progressed: True if the process has made progress since its start.
        """
        if self.is_recorded(failure):
            return 0.0
        index, now_s = failure.index, time.monotonic()
        restart_times_s = self._restart_times_s[failure.name]
        while restart_times_s and now_s - restart_times_s[0] > _HOUR_S:
            restart_times_s.popleft()
        if failure.server:
            failures = 0
            self._servers.add(failure.server)
        else:
            failures = self._failures[index] = 0 if progressed else self._failures[index] + 1
        if self._max_restarts == 0:
            self.give_up_reason = str(failure)
        elif len(restart_times_s) >= self._max_restarts:
            self.give_up_reason = (
                f"{failure}\n{failure.name} was restarted {len(restart_times_s)} times "
                "within an hour, the limit set by max_restarts"
            )
        elif min(self._failures.values()) >= _HOPELESS:
            self.give_up_reason = (
                f"{failure}\nevery {failure.role} failed {_HOPELESS} times in a row before it had "
                f"{self._progress}: giving up"
            )
        restart_times_s.append(now_s)
        # The longest pause is reached within 10 doublings; larger powers of two would overflow.
        doubled_s = _FIRST_PAUSE_S * 2 ** min(failures - 1, 10)
        return min(doubled_s, _LONGEST_PAUSE_S) if failures else 0.0


class Supervisor:
    """Watches workers and restarts those that crash or hang.

    A worker makes progress, in the sense of `Restarts`, when it counts a step.

    Args:
        workers, counters: workers, already started, and the counters that they write.
        max_restarts: restarts per worker and hour; 0 gives up at the first failure.
        step_timeout_s: seconds without heartbeat after which a worker counts as hung.

    Attributes:
        replaced: number of restarts so far.
    """

    def __init__(
        self, workers: Workers, counters: Counters, max_restarts: int, step_timeout_s: float
    ) -> None:
        self._workers, self._counters = workers, counters
        self._step_timeout_s = step_timeout_s
        indices = range(len(counters))
        self._started_s = [time.monotonic()] * len(counters)
        self._steps = [self._counted(worker) for worker in indices]  # at its start
        self._restarts = Restarts(indices, max_restarts)
        self._due_s: dict[int, float] = {}
        self.replaced = 0

    @property
    def give_up_reason(self) -> str:
        """Reason to give up the run; empty while it should continue."""
        return self._restarts.give_up_reason

    @property
    def running(self) -> bool:
        """True if a worker is running or will be restarted."""
        return bool(self._workers.running or self._due_s)

    def watch(self, timeout_s: float) -> list[Failure]:
        """Waits for a failure or the timeout, restarts workers whose pause is over.

        Returns the failures of workers that crashed or hung, the end of the fork server once.
        """
        failures = self._workers.wait(timeout_s)
        now_s = time.monotonic()
        for worker in self._workers.running:
            heartbeat_s = float(self._counters.rows["heartbeat_s"][worker])
            alive_s = max(heartbeat_s, self._started_s[worker])
            if now_s - alive_s > self._step_timeout_s:
                failures.append(self._workers.kill_hung(worker, now_s - alive_s))
        reported = []
        for failure in failures:
            if not self._restarts.is_recorded(failure):
                reported.append(failure)
            moved = self._counted(failure.index) > self._steps[failure.index]
            self._due_s[failure.index] = now_s + self._restarts.pause_s(failure, moved)
        for worker, due_s in list(self._due_s.items()):
            if due_s <= now_s and not self.give_up_reason:
                del self._due_s[worker]
                self._workers.replace(worker)
                self._started_s[worker] = time.monotonic()
                self._steps[worker] = self._counted(worker)
                self.replaced += 1
        return reported

    def _counted(self, worker: int) -> int:
        return int(self._counters.rows["steps"][worker])
