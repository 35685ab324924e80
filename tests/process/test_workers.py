"""Processes that share memory: exact counts, failures printed, nobody left behind."""

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
    """Runs workers until all have ended or one has failed, then stops the others."""
    failures: list[Failure] = []
    with Workers(target, arguments, count, seed=0, **more) as crew:
        deadline = time.monotonic() + 60
        while crew.running and not failures:
            assert time.monotonic() < deadline, "workers neither ended nor failed"
            failures = crew.wait(1.0)
        failures += crew.stop(timeout_s=10)
    return failures


def test_counts_of_eight_workers_are_exact() -> None:
    counters = Counters(8)
    assert run(jobs.count, (counters, 2000), 8) == []
    assert counters.total("steps") == 8 * 2000 * 3
    assert counters.total("updates") == 8 * 2000
    assert counters.total("episode_count") == 8 * 200
    assert counters.total("dropped") == 8 * 20
    assert counters.staleness_histogram().sum() == 8 * 2000
    assert [episode.episode_return for episode in counters.recent_episodes(5)].count(1990.0) >= 1


def test_updates_of_many_workers_all_reach_the_shared_parameters() -> None:
    module = nn.Linear(4, 1, bias=False)
    nn.init.zeros_(module.weight)
    shared = SharedModel(module)
    assert run(jobs.step_by_one, (shared, SharedSGD(shared, lr=1.0), 500), 4) == []
    # Each worker steps an element of its own, and rewrites the whole vector: few steps are lost.
    assert shared.flat.max() <= -250
    assert shared.flat.min() >= -500
    assert run(jobs.step_by_one, (shared, SharedSGD(shared, lr=0.0), 5), 1) == []


def test_the_updates_of_one_worker_are_exact() -> None:
    module = nn.Linear(4, 1, bias=False)
    nn.init.zeros_(module.weight)
    shared = SharedModel(module)
    assert run(jobs.step_by_one, (shared, SharedSGD(shared, lr=1.0), 500), 1) == []
    assert shared.flat.tolist() == [-500, 0, 0, 0]
    assert module.weight[0, 0] == -500, "the parent's module is a view of the shared memory"


@pytest.mark.parametrize(
    ("optimizer", "lr"), [(SharedSGD, 0.05), (SharedRMSprop, 0.05), (SharedAdam, 0.05)]
)
def test_workers_together_fit_a_linear_map(optimizer: Any, lr: float) -> None:
    shared = SharedModel(nn.Linear(8, 1, bias=False))
    assert run(jobs.regress, (shared, optimizer(shared, lr=lr), 600), 3) == []
    assert shared.flat.sub(torch.arange(8.0)).abs().max() < 0.2


def test_a_worker_has_one_thread_flushes_denormals_and_seeds_of_its_own() -> None:
    first, second = shared_memory.zeros(3, 5), shared_memory.zeros(3, 5)
    assert run(jobs.record_surroundings, (first,), 3) == []
    assert run(jobs.record_surroundings, (second,), 3, restart_index=1) == []
    assert first[:, :3].eq(1).all()
    seeds = torch.cat([first[:, 3:], second[:, 3:]]).flatten().tolist()
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize(
    ("how", "exit_code", "printed"),
    [
        ("raise", 1, "worker 1 failed with exit code 1:\nTraceback"),
        ("exit", 7, "worker 1 failed with exit code 7"),
        ("leave", 1, "worker 1 failed with exit code 1:\nTraceback"),
        ("kill", -9, "worker 1 was killed by SIGKILL"),
    ],
)
def test_a_failure_names_worker_exit_code_and_traceback(
    how: str, exit_code: int, printed: str
) -> None:
    (failure,) = run(jobs.fail, (how,), 3)
    assert (failure.worker, failure.exit_code) == (1, exit_code)
    assert str(failure).startswith(printed)
    assert ("the gearbox is on fire" in failure.traceback) == (how == "raise")


def test_a_traceback_longer_than_a_pipe_does_not_hang_the_worker() -> None:
    (failure,) = run(jobs.fail, ("long",), 2)
    assert failure.traceback.rstrip().endswith("the end")


def test_workers_that_do_not_stop_are_killed() -> None:
    with Workers(jobs.never_end, (), 2, seed=0) as crew:
        assert crew.running == 2
        assert crew.stop(timeout_s=0.5) == []
        assert crew.running == 0
    assert multiprocessing.active_children() == []


def test_leaving_the_context_by_an_exception_leaves_no_process() -> None:
    with pytest.raises(ZeroDivisionError), Workers(jobs.never_end, (), 2, seed=0):
        raise ZeroDivisionError
    assert multiprocessing.active_children() == []


def test_shared_memory_has_no_name_that_could_stay_behind() -> None:
    before = set(pathlib.Path("/dev/shm").iterdir())
    tensor = shared_memory.zeros(1000)
    assert tensor.is_shared()
    assert set(pathlib.Path("/dev/shm").iterdir()) == before


def test_too_little_shared_memory_is_said_before_it_is_touched() -> None:
    with pytest.raises(OSError, match="bytes free"):
        shared_memory.zeros(1 << 42, dtype=torch.uint8)
