"""Command line, rate measurement and output of the programs in this folder.

Each program runs in the virtual environment of one library, which is not that of hogwild_rl, and
prints one line of JSON: its result, and the versions of the packages it uses.
"""

import argparse
import json
import platform
import time
from importlib import metadata
from typing import Any

SOLVED_RETURN = 475.0  # registered threshold of CartPole-v1
SOLVED_EPISODES = 100


def arguments(description: str, *tasks: str) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("task", choices=tasks)
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of the measurement")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=1, help="PPO: epochs per update")
    return parser.parse_args()


class RateMeter:
    """Rate of a counter against the clock, after a warm-up.

    Args:
        seconds: duration of the measurement.
        warm_up_s: duration before it, from the first call of `finished`.

    Attributes:
        per_s: the rate, after `finished` has returned True.
    """

    def __init__(self, seconds: float, warm_up_s: float = 1.0) -> None:
        self._seconds = seconds
        self._warm_up_s = warm_up_s
        self._first_call_s: float | None = None
        self._start: tuple[float, int] | None = None
        self.per_s = float("nan")

    def finished(self, count: int) -> bool:
        """Returns True once the measurement is complete; `count` is the counter's value."""
        now_s = time.perf_counter()
        if self._first_call_s is None:
            self._first_call_s = now_s
        if self._start is None:
            if now_s - self._first_call_s >= self._warm_up_s:
                self._start = now_s, count
            return False
        start_s, first = self._start
        if now_s - start_s < self._seconds:
            return False
        self.per_s = (count - first) / (now_s - start_s)
        return True


def report(*packages: str, **result: Any) -> None:
    """Prints the result as JSON, with the versions of the packages."""
    versions = {"Python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in packages}
    print(json.dumps({**result, "versions": versions}), flush=True)
