"""Keeps a crew of workers going: who fails or hangs is replaced, and the others never wait."""

import time

from hogwild_rl.hogwild.failure import Failure
from hogwild_rl.hogwild.restarts import Restarts
from hogwild_rl.hogwild.slots import Slots
from hogwild_rl.hogwild.workers import Workers


class Supervisor:
    """Watches workers that have been started, and starts new ones for those that fail or hang.

    A worker was of use, in the sense of `Restarts`, if it has counted a step.

    Args:
        crew: the workers.
        slots: in which they count.
        max_restarts: of one worker within an hour; 0 gives up at the first failure.
        step_timeout_s: seconds without a sign of life after which a worker hangs.

    Attributes:
        replaced: how many workers were started anew.
    """

    def __init__(
        self, crew: Workers, slots: Slots, max_restarts: int, step_timeout_s: float
    ) -> None:
        self._crew, self._slots = crew, slots
        self._step_timeout_s = step_timeout_s
        workers, now_s = range(len(slots)), time.monotonic()
        self._started_s = [now_s for _ in workers]
        self._steps = [self._counted(worker) for worker in workers]  # when it was started
        self._restarts = Restarts(workers, max_restarts)
        self._due_s: dict[int, float] = {}
        self.replaced = 0

    @property
    def verdict(self) -> str:
        """Why the run should be given up; empty while it should not."""
        return self._restarts.verdict

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
            moved = self._counted(failure.worker) > self._steps[failure.worker]
            self._due_s[failure.worker] = now_s + self._restarts.pause_s(failure, moved)
        for worker, due_s in list(self._due_s.items()):
            if due_s <= now_s and not self.verdict:
                del self._due_s[worker]
                self._replace(worker)
        return failures

    def _replace(self, worker: int) -> None:
        self._crew.replace(worker)
        self._started_s[worker] = time.monotonic()
        self._steps[worker] = self._counted(worker)
        self.replaced += 1

    def _counted(self, worker: int) -> int:
        return int(self._slots.rows["steps"][worker])
