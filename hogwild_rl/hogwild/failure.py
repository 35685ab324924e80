"""How a worker ended that should not have."""

import dataclasses
import signal


@dataclasses.dataclass(frozen=True)
class Failure:
    """A worker, or another numbered process, that ended otherwise than by returning.

    Attributes:
        worker: its number.
        exit_code: negative where a signal killed it.
        traceback: of what it raised, or of where it hung; empty where nobody knows.
        kind: what it is called.
        silent_s: for how long it gave no sign of life, where it was killed for that.
    """

    worker: int
    exit_code: int
    traceback: str
    kind: str = "worker"
    silent_s: float = 0.0

    def __str__(self) -> str:
        if self.silent_s:
            how = f"gave no sign of life for {self.silent_s:.0f} s and was killed"
        elif self.exit_code < 0:
            how = f"was killed by {_signal_name(-self.exit_code)}"
        else:
            how = f"failed with exit code {self.exit_code}"
        return f"{self.kind} {self.worker} {how}" + (
            f":\n{self.traceback}" if self.traceback else ""
        )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no name
        return f"signal {number}"
