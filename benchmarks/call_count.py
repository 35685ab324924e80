"""Function calls in one iteration of A3C on CartPole-v1, by file.

    python benchmarks/call_count.py

One worker with one environment and n_steps 5, as in the A3C paper, trains in this process as in one
of several worker processes. In iteration 100, `sys.setprofile` records all calls of functions of
hogwild_rl. Printed are the calls per file, and how often the file changes between two calls.
"""

import itertools
import pathlib
import sys
import tempfile
from collections import Counter
from types import FrameType
from typing import Any

import machine
import torch

import hogwild_rl
from hogwild_rl import a3c
from hogwild_rl.hogwild.processes import Worker
from hogwild_rl.training import launch

PACKAGE = str(pathlib.Path(hogwild_rl.__file__).parent)
COUNTED_ITERATION = 100


def main() -> None:
    """Counts the calls and prints the totals and the calls in each file."""
    print(machine.describe())
    torch.set_num_threads(1)
    calls: list[tuple[str, str]] = []

    def record(frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(PACKAGE):
            calls.append((file[len(PACKAGE) + 1 :], frame.f_code.co_qualname))

    def profiled_worker(worker: Worker, task: Any) -> None:
        iterations = a3c.iterations

        def profiled_iterations(*arguments: Any) -> Any:
            for number, progress in enumerate(iterations(*arguments)):
                sys.setprofile(record if number == COUNTED_ITERATION else None)
                yield progress

        a3c.iterations = profiled_iterations
        try:
            a3c.actor_learner(worker, task)
        finally:
            a3c.iterations = iterations
            sys.setprofile(None)

    def as_in_a_worker_process(run: Any, _: Any, task: Any) -> Any:
        stop = torch.zeros(1, dtype=torch.uint8)
        launch._run_worker(Worker(0, 0, task.config.seed, stop.item), profiled_worker, task)
        return run.close(task.state.counters, failed=False)

    launch.in_processes = as_in_a_worker_process
    with tempfile.TemporaryDirectory() as folder:
        a3c.train(
            a3c.Config(
                workers=1,
                envs_per_worker=1,
                n_steps=5,
                total_timesteps=2_000,
                run_dir=f"{folder}/run",
                quiet=True,
            )
        )
    files = [file for file, _ in calls]
    switches = sum(one != other for one, other in itertools.pairwise(files))
    print(f"{len(calls)} calls in {len(set(files))} files, {switches} switches between files")
    for file, count in Counter(files).most_common():
        names = Counter(name for path, name in calls if path == file)
        print(f"{count:4} {file}: {', '.join(f'{n} {c}x' for n, c in names.most_common(6))}")


if __name__ == "__main__":
    main()
