"""What is said at a run's end."""

import contextlib
import os
import pathlib
import shlex
import sys
from collections.abc import Iterator

from hogwild_rl.runs.metrics import Snapshot


def of(last: Snapshot, frames_per_step: int, solved_at: Snapshot | None) -> Iterator[str]:
    """How far the run came, and when it was solved, in lines."""
    if solved_at is not None:
        yield (
            f"solved: mean return {solved_at.return_mean:.1f} over the last 100 episodes "
            f"after {solved_at.steps:,} steps, {solved_at.time_s:.1f} s"
        )
    frames = f" ({frames_per_step * last.steps:,} frames)" if frames_per_step > 1 else ""
    yield (
        f"trained {last.steps:,} steps{frames}, {last.updates:,} updates in {last.time_s:.1f} s, "
        f"{last.episodes:,} episodes, mean return {last.return_mean:.1f} at the end"
    )
    if last.dropped:
        yield f"dropped {last.dropped:,} gradients that were not finite"


def next_steps(folder: pathlib.Path, env: str, resume: str | None) -> Iterator[str]:
    """Where the run is, and what to do with it: go on with an algorithm, or see it play."""
    place = shlex.quote(str(folder)) + (" --allow-import" if ":" in env else "")
    yield f"run: {folder}"
    if resume is None:
        yield f"next: {_python()} -m hogwild_rl.evaluate {place} --episodes 20"
    else:
        yield f"next: {_python()} -m hogwild_rl.{resume} --resume {place}"


def _python() -> str:
    """How the person running this starts the same Python again."""
    executable = pathlib.Path(sys.executable)
    if str(executable.parent) in os.environ.get("PATH", "").split(os.pathsep):
        return executable.name
    with contextlib.suppress(ValueError):
        return str(executable.relative_to(pathlib.Path.cwd()))
    return str(executable)
