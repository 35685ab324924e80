"""Python calls of this package in one iteration of A3C on CartPole-v1, and the files they are in.

    python benchmarks/call_count.py

One worker with one environment and n_steps 5, the textbook's A3C, in this process. The hundredth
iteration is counted with `sys.setprofile`: calls of functions defined in hogwild_rl, the files that
define them, and the moves from a file to another.
"""

import dataclasses
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
COUNTED = 100  # iteration


def main() -> None:
    """Counts, and prints a line and the calls of each file."""
    print(machine.describe())
    torch.set_num_threads(1)
    calls: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(PACKAGE):
            calls.append((file[len(PACKAGE) + 1 :], frame.f_code.co_qualname))

    def counted(worker: Worker, task: Any) -> None:
        iterations = a3c.iterations

        def watched(*arguments: Any) -> Any:
            for number, progress in enumerate(iterations(*arguments)):
                sys.setprofile(note if number == COUNTED else None)
                yield progress

        a3c.iterations = watched
        try:
            a3c.actor_learner(worker, task)
        finally:
            a3c.iterations = iterations
            sys.setprofile(None)

    def here(run: Any, _: Any, task: Any) -> Any:
        return launch.in_this_process(run, counted, dataclasses.replace(task))

    launch.in_processes = here
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
    moves = sum(one != other for one, other in itertools.pairwise(files))
    print(f"{len(calls)} calls in {len(set(files))} files, {moves} moves between files")
    for file, count in Counter(files).most_common():
        names = Counter(name for where, name in calls if where == file)
        print(f"{count:4} {file}: {', '.join(f'{n} {c}x' for n, c in names.most_common(6))}")


if __name__ == "__main__":
    main()
