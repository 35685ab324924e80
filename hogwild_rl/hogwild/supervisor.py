"""Keeps a crew of workers going: who fails or hangs is replaced, and the others never wait."""

import collections
import time

from hogwild_rl.hogwild.failure import Failure
from hogwild_rl.hogwild.slots import Slots
from hogwild_rl.hogwild.workers import Workers

_HOUR_S = 3600.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 60.0
_HOPELESS = 2  # times in a row that a worker may fail before it has counted a step


class Supervisor:
    """Watches workers that have been started, and starts new ones for those that fail or hang.

    A worker that fails again before it has counted a step waits, twice as long each time. If that
    happens to all of them, it is no accident, and the run is given up.

    Args:
        crew: the workers.
        slots: in which they count.
        max_restarts: of one worker within an hour; 0 gives up at the first failure.
        step_timeout_s: seconds without a sign of life after which a worker hangs.

    Attributes:
        verdict: why the run should be given up; empty while it should not.
        replaced: how many workers were started anew.
    """

    def __init__(
        self, crew: Workers, slots: Slots, max_restarts: int, step_timeout_s: float
    ) -> None:
        self._crew, self._slots = crew, slots
        self._max_restarts, self._step_timeout_s = max_restarts, step_timeout_s
        workers, now_s = range(len(slots)), time.monotonic()
        self._started_s = [now_s for _ in workers]
        self._steps = [self._counted(worker) for worker in workers]  # when it was started
        self._barren = [0 for _ in workers]  # failures in a row without a step
        self._restarts_s: list[collections.deque[float]] = [collections.deque() for _ in workers]
        self._due_s: dict[int, float] = {}
        self.verdict, self.replaced = "", 0

    @property
    def running(self) -> bool:
        """Whether there is a worker, or will be one."""
        return bool(self._crew.running or self._due_s)

    def watch(self, timeout_s: float) -> list[Failure]:
        """Waits until something happens or the time is over.

        Returns:
            The workers found to have failed or to hang; they are or will be replaced, unless there
            is a verdict.
        """
        failures = self._crew.wait(timeout_s)
        now_s = time.monotonic()
        for worker in self._crew.alive:
            beat_s = float(self._slots.rows["heartbeat_s"][worker])
            alive_s = max(beat_s, self._started_s[worker])
            if now_s - alive_s > self._step_timeout_s:
                failures.append(self._crew.put_down(worker, now_s - alive_s))
        for failure in failures:
            self._note(failure, now_s)
        for worker, due_s in list(self._due_s.items()):
            if due_s <= now_s and not self.verdict:
                del self._due_s[worker]
                self._replace(worker)
        return failures

    def _note(self, failure: Failure, now_s: float) -> None:
        worker, restarts_s = failure.worker, self._restarts_s[failure.worker]
        while restarts_s and now_s - restarts_s[0] > _HOUR_S:
            restarts_s.popleft()
        moved = self._counted(worker) > self._steps[worker]
        self._barren[worker] = 0 if moved else self._barren[worker] + 1
        if self._max_restarts == 0:
            self.verdict = str(failure)
        elif len(restarts_s) >= self._max_restarts:
            self.verdict = (
                f"{failure}\nworker {worker} was replaced {len(restarts_s)} times within an hour, "
                "which is all that max_restarts allows"
            )
        elif min(self._barren) >= _HOPELESS:
            self.verdict = (
                f"{failure}\nevery worker failed {_HOPELESS} times in a row before it had counted "
                "a step: this is no accident"
            )
        pause_s = _FIRST_PAUSE_S * 2.0 ** (self._barren[worker] - 1) if not moved else 0.0
        self._due_s[worker] = now_s + min(pause_s, _LONGEST_PAUSE_S)

    def _replace(self, worker: int) -> None:
        self._crew.replace(worker)
        self._started_s[worker] = time.monotonic()
        self._restarts_s[worker].append(self._started_s[worker])
        self._steps[worker] = self._counted(worker)
        self.replaced += 1

    def _counted(self, worker: int) -> int:
        return int(self._slots.rows["steps"][worker])
