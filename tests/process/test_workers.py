"""Tests of worker processes: shared counters and parameters, failure reports, shutdown."""

import multiprocessing
import pathlib
import time
from typing import Any

import pytest
import torch
from torch import nn

from hogwild_rl.hogwild import shared_memory
from hogwild_rl.hogwild.counters import Counters
from hogwild_rl.hogwild.optimizers import SharedAdam, SharedRMSprop, SharedSGD
from hogwild_rl.hogwild.processes import Failure, Workers
from hogwild_rl.hogwild.shared_model import SharedModel
from tests.process import jobs


def run(target: Any, arguments: tuple[Any, ...], count: int, **more: Any) -> list[Failure]:
    """Runs workers until all have exited or one has failed, then stops the others."""
    failures: list[Failure] = []
    with Workers(target, arguments, count, seed=0, **more) as workers:
        deadline = time.monotonic() + 60
        while workers.running and not failures:
            assert time.monotonic() < deadline, "workers neither exited nor failed"
            failures = workers.wait(1.0)
        failures += workers.stop(timeout_s=10)
    return failures


def test_counters_of_eight_workers_are_exact() -> None:
    counters = Counters(8)
    assert run(jobs.count, (counters, 2000), 8) == []
    assert counters.total("steps") == 8 * 2000 * 3
    assert counters.total("updates") == 8 * 2000
    assert counters.total("episode_count") == 8 * 200
    assert counters.total("dropped") == 8 * 20
    assert counters.staleness_histogram().sum() == 8 * 2000
    assert 1990.0 in counters.recent_episodes(5)["return"]


def test_updates_of_all_workers_reach_the_shared_parameters() -> None:
    module = nn.Linear(4, 1, bias=False)
    nn.init.zeros_(module.weight)
    shared = SharedModel(module)
    assert run(jobs.update_own_element, (shared, SharedSGD(shared, lr=1.0), 500), 4) == []
    # Each worker updates its own element but rewrites the whole vector: few updates are lost.
    assert shared.flat.max() <= -250
    assert shared.flat.min() >= -500
    assert run(jobs.update_own_element, (shared, SharedSGD(shared, lr=0.0), 5), 1) == []


def test_updates_of_one_worker_are_exact() -> None:
    module = nn.Linear(4, 1, bias=False)
    nn.init.zeros_(module.weight)
    shared = SharedModel(module)
    assert run(jobs.update_own_element, (shared, SharedSGD(shared, lr=1.0), 500), 1) == []
    assert shared.flat.tolist() == [-500, 0, 0, 0]
    assert module.weight[0, 0] == -500, "the parent's module is a view of the shared memory"


@pytest.mark.parametrize(
    ("optimizer", "lr"), [(SharedSGD, 0.05), (SharedRMSprop, 0.05), (SharedAdam, 0.05)]
)
def test_workers_fit_a_linear_map(optimizer: Any, lr: float) -> None:
    shared = SharedModel(nn.Linear(8, 1, bias=False))
    assert run(jobs.regress, (shared, optimizer(shared, lr=lr), 600), 3) == []
    assert shared.flat.sub(torch.arange(8.0)).abs().max() < 0.2


def test_worker_has_one_thread_flushes_denormals_and_has_unique_seeds() -> None:
    first, second = shared_memory.zeros(3, 5), shared_memory.zeros(3, 5)
    assert run(jobs.record_process_state, (first,), 3) == []
    assert run(jobs.record_process_state, (second,), 3, restart_index=1) == []
    assert first[:, :3].eq(1).all()
    seeds = torch.cat([first[:, 3:], second[:, 3:]]).flatten().tolist()
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize(
    ("mode", "exit_code", "printed"),
    [
        ("raise", 1, "worker 1 failed with exit code 1:\nTraceback"),
        ("exit", 7, "worker 1 failed with exit code 7"),
        ("sys_exit", 1, "worker 1 failed with exit code 1:\nTraceback"),
        ("kill", -9, "worker 1 was killed by SIGKILL"),
    ],
)
def test_failure_contains_worker_exit_code_and_traceback(
    mode: str, exit_code: int, printed: str
) -> None:
    (failure,) = run(jobs.fail, (mode,), 3)
    assert (failure.index, failure.exit_code) == (1, exit_code)
    assert str(failure).startswith(printed)
    assert ("simulated failure" in failure.traceback) == (mode == "raise")


def test_traceback_longer_than_the_pipe_buffer_does_not_block_the_worker() -> None:
    (failure,) = run(jobs.fail, ("long",), 2)
    assert failure.traceback.rstrip().endswith("the end")


def test_workers_that_do_not_stop_are_killed() -> None:
    with Workers(jobs.sleep_forever, (), 2, seed=0) as workers:
        assert len(workers.running) == 2
        assert workers.stop(timeout_s=0.5) == []
        assert not workers.running
    assert multiprocessing.active_children() == []


def test_exception_in_the_context_leaves_no_process() -> None:
    with pytest.raises(ZeroDivisionError), Workers(jobs.sleep_forever, (), 2, seed=0):
        raise ZeroDivisionError
    assert multiprocessing.active_children() == []


def test_shared_memory_leaves_no_named_file() -> None:
    before = set(pathlib.Path("/dev/shm").iterdir())
    tensor = shared_memory.zeros(1000)
    assert tensor.is_shared()
    assert set(pathlib.Path("/dev/shm").iterdir()) == before


def test_insufficient_shared_memory_is_reported_at_allocation() -> None:
    with pytest.raises(OSError, match="bytes free"):
        shared_memory.zeros(1 << 42, dtype=torch.uint8)
