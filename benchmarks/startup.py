"""Where the time of a whole `a3c --stop-when-solved` process on CartPole-v1 goes.

    python benchmarks/startup.py
    python benchmarks/startup.py --runs 20 --workers 16

Each run is a process of its own, which records when its stages end. Reported are the medians over
the runs, each with its own seed, of the seconds that every stage takes.
"""

import dataclasses
import functools
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

STARTED = "STARTED_S"  # environment variable of the child: the time before its start
STAGES = (
    "start of Python",
    "start of the fork server",
    "import of torch",
    "import of gymnasium and numpy",
    "import of hogwild_rl",
    "command line and check of the environment",
    "network, shared memory and run folder",
    "start of the workers",
    "first episode",
    "training until solved",
    "end of the workers and checkpoint",
    "exit",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the measurement."""

    runs: int = 10
    """Number of processes."""
    workers: int = 2
    """Workers of each."""


def run_child() -> None:
    """Runs A3C with the flags of this process; prints the ends of the stages."""
    ends = [float(os.environ.pop(STARTED)), time.monotonic()]

    def mark(*_: Any) -> None:
        ends.append(time.monotonic())

    from hogwild_rl.training import startup

    startup.prepare(fork_server=True)
    mark()
    import torch  # noqa: F401

    mark()
    import gymnasium  # noqa: F401

    mark()
    from hogwild_rl import a3c
    from hogwild_rl.config import cli
    from hogwild_rl.hogwild.processes import Workers
    from hogwild_rl.runs.run import Run

    mark()

    def marked(owner: type, name: str, before: Callable[..., Any] | None = None) -> None:
        method = getattr(owner, name)

        @functools.wraps(method)
        def measured(self: Any, *arguments: Any, **options: Any) -> Any:
            if before is not None:
                before(self, *arguments)
            result = method(self, *arguments, **options)
            mark()
            return result

        setattr(owner, name, measured)

    def add_training(_: Run, counters: Any, *__: Any) -> None:
        episodes = counters.rows["episodes"]["time_s"]
        ends.extend([float(episodes[episodes > 0].min()), float(episodes.max())])

    marked(Run, "__init__")
    marked(Run, "open")
    marked(Workers, "__enter__")
    marked(Run, "close", add_training)
    sys.argv[0] = "a3c"

    def program() -> None:
        a3c.main()
        print(json.dumps(ends))

    cli.run(program)


def durations(seed: int, workers: int, folder: pathlib.Path) -> list[float]:
    """Seconds of each stage in one process."""
    settings = f"--quiet --stop-when-solved --seed {seed} --workers {workers}".split()
    command = [sys.executable, __file__, "--child", *settings, "--run-dir", str(folder)]
    environment = {**os.environ, STARTED: str(time.monotonic())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    ends = [*json.loads(done.stdout.splitlines()[-1]), time.monotonic()]
    return [end - begin for begin, end in itertools.pairwise(ends)]


def main() -> None:
    """Measures all runs; prints and writes the medians."""
    import machine  # not in the child: both import torch or numpy
    import tyro

    config = tyro.cli(Config, description=__doc__)
    print(machine.describe())
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            durations(seed, config.workers, pathlib.Path(folder, str(seed)))
            for seed in range(config.runs)
        ]
    rows = []
    for stage, seconds in zip(STAGES, zip(*runs, strict=True), strict=True):
        rows.append({"stage": stage, "median_s": round(statistics.median(seconds), 3)})
        print(f"{rows[-1]['median_s']:6.3f} s  {stage}")
    total = statistics.median(sum(run) for run in runs)
    rows.append({"stage": "whole process", "median_s": round(total, 3)})
    print(f"{total:6.3f} s  whole process")
    print(f"written: {machine.write_csv(f'startup_{config.workers}', rows)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        del sys.argv[1]
        run_child()
    else:
        main()
