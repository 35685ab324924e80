"""Target functions of worker processes, importable by name."""

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


def update_own_element(
    worker: Worker, shared: SharedModel[Any], optimizer: SharedOptimizer, rounds: int
) -> None:
    """The gradient is 1 in the worker's own element and 0 in all others."""
    local = shared.replica()
    for _ in range(rounds):
        local.pull()
        optimizer.apply(local.gradient(local.module.weight[0, worker.index]))


def regress(
    worker: Worker, shared: SharedModel[Any], optimizer: SharedOptimizer, rounds: int
) -> None:
    """Linear regression y = x W* on minibatches sampled by this worker."""
    generator = torch.Generator().manual_seed(worker.random_seeds(1)[0])
    local = shared.replica()
    truth = torch.arange(8.0)
    for _ in range(rounds):
        inputs = torch.randn(16, 8, generator=generator)
        local.pull()
        errors = local.module(inputs).squeeze(-1) - inputs @ truth
        optimizer.apply(local.gradient(errors.square().mean()))


def record_process_state(worker: Worker, records: torch.Tensor) -> None:
    """Writes thread counts, the denormal flag and two seeds of this process to `records`."""
    records[worker.index, 0] = torch.get_num_threads()
    records[worker.index, 1] = torch.tensor([1e-310], dtype=torch.float64).mul(1).item() == 0
    records[worker.index, 2] = int(os.environ["OMP_NUM_THREADS"])
    records[worker.index, 3:] = torch.tensor(worker.random_seeds(2))


def fail(worker: Worker, mode: str) -> None:
    """Worker 1 fails; the others wait for the request to stop."""
    if worker.index == 1:
        if mode == "raise":
            raise RuntimeError("simulated failure")
        if mode == "long":
            raise RuntimeError("x" * 1_000_000 + "the end")
        if mode == "exit":
            os._exit(7)
        if mode == "sys_exit":
            sys.exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    while not worker.should_stop():
        time.sleep(0.01)


def sleep_forever(worker: Worker) -> None:
    while True:
        time.sleep(1)


def fail_later(worker: Worker, counters: Counters, mode: str, goal: int) -> None:
    """Counts steps up to a total of `goal`; worker 1 fails 1,000 steps after each start."""
    counts = counters.writer(worker.index)
    steps_at_start = int(counters.rows["steps"][worker.index])
    while not worker.should_stop() and counters.total("steps") < goal:
        counts.add_rollout(1, [])
        counts.lap("env")
        time.sleep(1e-4)
        fails = worker.index == 1 and counters.rows["steps"][1] - steps_at_start == 1000
        if fails and mode == "hang":
            time.sleep(3600)
        elif fails and mode == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif fails:
            fail(worker, mode)


def fail_before_first_step(worker: Worker, counters: Counters, num_failing: int) -> None:
    """The first `num_failing` workers always fail; the others wait for the request to stop."""
    counters.writer(worker.index)
    if worker.index < num_failing:
        raise RuntimeError("simulated failure")
    while not worker.should_stop():
        counters.rows["heartbeat_s"][worker.index] = time.monotonic()
        time.sleep(0.01)
