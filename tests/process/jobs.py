"""What workers do in the tests; a process finds it by name."""

import os
import signal
import sys
import time
from typing import Any

import torch

from hogwild_rl.hogwild.counters import Counters
from hogwild_rl.hogwild.optimizers import SharedOptimizer
from hogwild_rl.hogwild.processes import Worker
from hogwild_rl.hogwild.shared_model import SharedModel


def count(worker: Worker, counters: Counters, rounds: int) -> None:
    counts = counters.writer(worker.index)
    for index in range(rounds):
        counts.add_rollout(3, [(float(index), 3)] if index % 10 == 0 else [])
        counts.add_update(counts.total_updates())
        if index % 100 == 0:
            counts.add_dropped()


def step_by_one(
    worker: Worker, shared: SharedModel[Any], optimizer: SharedOptimizer, rounds: int
) -> None:
    """Every gradient is 1 in the worker's own element: no two workers meet."""
    local = shared.replica()
    for _ in range(rounds):
        local.pull()
        optimizer.apply(local.gradient(local.module.weight[0, worker.index]))


def regress(
    worker: Worker, shared: SharedModel[Any], optimizer: SharedOptimizer, rounds: int
) -> None:
    """Everybody fits y = x W* on batches of their own."""
    generator = torch.Generator().manual_seed(worker.random_seeds(1)[0])
    local = shared.replica()
    truth = torch.arange(8.0)
    for _ in range(rounds):
        inputs = torch.randn(16, 8, generator=generator)
        local.pull()
        errors = local.module(inputs).squeeze(-1) - inputs @ truth
        optimizer.apply(local.gradient(errors.square().mean()))


def record_surroundings(worker: Worker, notes: torch.Tensor) -> None:
    """Threads, whether denormals are flushed, and two seeds, for the parent to read."""
    notes[worker.index, 0] = torch.get_num_threads()
    notes[worker.index, 1] = torch.tensor([1e-310], dtype=torch.float64).mul(1).item() == 0
    notes[worker.index, 2] = int(os.environ["OMP_NUM_THREADS"])
    notes[worker.index, 3:] = torch.tensor(worker.random_seeds(2))


def fail(worker: Worker, how: str) -> None:
    """Worker 1 fails; the others wait to be printed to stop."""
    if worker.index == 1:
        if how == "raise":
            raise RuntimeError("the gearbox is on fire")
        if how == "long":
            raise RuntimeError("x" * 1_000_000 + "the end")
        if how == "exit":
            os._exit(7)
        if how == "leave":
            sys.exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    while not worker.stopping:
        time.sleep(0.01)


def never_end(worker: Worker) -> None:
    while True:
        time.sleep(1)


def stumble(worker: Worker, counters: Counters, how: str, goal: int) -> None:
    """Counts steps until all have counted enough; worker 1 stumbles after every thousand."""
    counts = counters.writer(worker.index)
    began = int(counters.rows["steps"][worker.index])
    while not worker.stopping and counters.total("steps") < goal:
        counts.add_rollout(1, [])
        counts.lap("env")
        time.sleep(1e-4)
        stumbles = worker.index == 1 and counters.rows["steps"][1] - began == 1000
        if stumbles and how == "hang":
            time.sleep(3600)
        elif stumbles and how == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif stumbles:
            fail(worker, how)


def fail_at_once(worker: Worker, counters: Counters, who: int) -> None:
    """Some workers fail before their first step, always; the others wait."""
    counters.writer(worker.index)
    if worker.index < who:
        raise RuntimeError("the gearbox is on fire")
    while not worker.stopping:
        counters.rows["heartbeat_s"][worker.index] = time.monotonic()
        time.sleep(0.01)
