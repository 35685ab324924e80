"""When a process that failed is replaced, and when there is no use in it."""

import collections
import time
from collections.abc import Sequence

from hogwild_rl.hogwild.failure import Failure

_HOUR_S = 3600.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 60.0
_HOPELESS = 2  # times in a row that a process may fail before it was of use


class Restarts:
    """The rules by which numbered processes that fail are replaced.

    One that fails again before it was of use waits, twice as long each time. If that happens to all
    of them, it is no accident, and the run is given up.

    Args:
        numbers: of the processes.
        max_restarts: of one process within an hour; 0 gives up at the first failure.
        use: what one that was of use has done, in words.

    Attributes:
        verdict: why the run should be given up; empty while it should not.
    """

    def __init__(
        self, numbers: Sequence[int], max_restarts: int, use: str = "counted a step"
    ) -> None:
        self._max_restarts, self._use = max_restarts, use
        self._barren = dict.fromkeys(numbers, 0)  # failures in a row without use
        self._granted_s = {number: collections.deque[float]() for number in numbers}
        self.verdict = ""

    def pause_s(self, failure: Failure, useful: bool) -> float:
        """Notes a failure.

        Args:
            failure: of one of the processes.
            useful: whether it was of use before.

        Returns:
            Seconds until it should be replaced, unless there is a verdict.
        """
        number, now_s = failure.worker, time.monotonic()
        granted_s = self._granted_s[number]
        while granted_s and now_s - granted_s[0] > _HOUR_S:
            granted_s.popleft()
        barren = self._barren[number] = 0 if useful else self._barren[number] + 1
        if self._max_restarts == 0:
            self.verdict = str(failure)
        elif len(granted_s) >= self._max_restarts:
            self.verdict = (
                f"{failure}\n{failure.kind} {number} was replaced {len(granted_s)} times within an "
                "hour, which is all that max_restarts allows"
            )
        elif min(self._barren.values()) >= _HOPELESS:
            self.verdict = (
                f"{failure}\nevery {failure.kind} failed {_HOPELESS} times in a row before it had "
                f"{self._use}: this is no accident"
            )
        granted_s.append(now_s)
        # Beyond a few doublings the longest pause holds, and powers of two are infinite at last.
        return min(_FIRST_PAUSE_S * 2 ** min(barren - 1, 10), _LONGEST_PAUSE_S) if barren else 0.0
