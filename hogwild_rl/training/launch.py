"""Starts and supervises the workers of a run, in processes or in this process."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from hogwild_rl.config import base
from hogwild_rl.envs.env_process import EnvironmentFailedError
from hogwild_rl.errors import RunFailedError
from hogwild_rl.hogwild import processes
from hogwild_rl.hogwild.processes import Worker, Workers
from hogwild_rl.hogwild.supervisor import Restarts, Supervisor
from hogwild_rl.runs.agent import Agent
from hogwild_rl.runs.run import Run
from hogwild_rl.training.exact_resume import OBSERVE_EVERY_S, LocalSafePoint, SafePoint
from hogwild_rl.training.task import Task

WorkerFunction: TypeAlias = Callable[[Worker, Task[Any]], None]

_STOP_TIMEOUT_S = 10.0


def in_processes(run: Run, function: WorkerFunction, task: Task[Any]) -> Agent:
    """Runs ``function(worker, task)`` in a process for each row of the counters.

    Workers that crash or hang are reported and restarted. The run must be open, and the function at
    the top level of a module.

    Raises:
        RunFailedError: workers failed too often, or all at once; a checkpoint was written.
        KeyboardInterrupt, SystemExit: interrupted; a checkpoint was written.
    """
    counters, config = task.state.counters, task.config
    cores = base.usable_cores()
    if len(counters) > cores:
        run.info(f"{len(counters)} workers share {cores} cores")
    # With several workers runs are not reproducible: an exact state is not worth waiting for.
    safe_point = SafePoint(run.folder) if len(counters) == 1 else None
    arguments = (function, dataclasses.replace(task, safe_point=safe_point))
    workers = Workers(_run_worker, arguments, len(counters), config.seed, run.before.sessions)
    give_up_reason = "the run was interrupted"
    with run.interruptible():
        try:
            with contextlib.ExitStack() as started:
                try:
                    started.enter_context(workers)
                except (OSError, EOFError) as error:  # EOFError: the fork server failed
                    raise RunFailedError(f"the workers cannot be started ({error})") from error
                restarts = (config.max_restarts, config.step_timeout)
                supervisor = Supervisor(workers, counters, *restarts)
                while supervisor.running and not supervisor.give_up_reason and not run.ending:
                    for failure in supervisor.watch(OBSERVE_EVERY_S):
                        run.log_failure(str(failure), printed=bool(supervisor.give_up_reason))
                    if safe_point is None or not run.checkpoint_due:
                        run.observe(counters)
                    elif safe_point.captured():
                        run.observe(counters, safe_point.state)
                        safe_point.release()
                for text in dict.fromkeys(map(str, workers.stop(_STOP_TIMEOUT_S))):
                    run.log_failure(text)
                give_up_reason = supervisor.give_up_reason
        finally:
            last = None if safe_point is None else safe_point.state
            agent = run.close(counters, bool(give_up_reason), last)
            if safe_point is not None:
                safe_point.remove()
    if give_up_reason:
        raise RunFailedError(give_up_reason)
    return agent


def _run_worker(worker: Worker, function: WorkerFunction, task: Task[Any]) -> None:
    with contextlib.ExitStack() as resources:
        function(worker, dataclasses.replace(task, resources=resources))


def in_this_process(run: Run, function: WorkerFunction, task: Task[Any]) -> Agent:
    """Runs ``function(worker, task)`` in this process, as the only worker or one rank of several.

    Raises:
        RunFailedError: environments failed too often, or all at once; a checkpoint was written.
        KeyboardInterrupt, SystemExit: interrupted; a checkpoint was written.
    """
    ranks, counters = task.ranks, task.state.counters
    point, finished = LocalSafePoint(run), False
    ranks.wants_to_stop = lambda: run.ending
    worker = Worker(ranks.index, run.before.sessions, task.config.seed, lambda: ranks.stopping)
    if task.backend.name == "async":
        processes.preload("hogwild_rl.training.launch")  # otherwise every process imports torch
    count = task.groups * task.group_size
    numbers = range(ranks.index * count, (ranks.index + 1) * count)
    seeds = (worker.seed, worker.index, worker.restart_index)
    with (
        contextlib.ExitStack() as resources,
        run.interruptible(),
        processes.seeded_globally(*seeds),
        torch.enable_grad(),
    ):
        resources.callback(os.chdir, os.getcwd())  # noqa: PTH109  environments may change it
        task = dataclasses.replace(
            task,
            safe_point=point,
            resources=resources,
            on_env_failure=_restart_policy(run, numbers, task.config),
        )
        try:
            function(worker, task)
            finished = True
        finally:
            resources.close()
            agent = run.close(counters, not finished, lambda: point.state)
    return agent


def _restart_policy(
    run: Run, environments: Sequence[int], config: Any
) -> Callable[[EnvironmentFailedError], float]:
    """Returns a `failed` callback for `ProcessVectorEnv`, which logs and restarts.

    The callback raises RunFailedError if environments fail too often, or all at once. To take
    `n_steps` steps counts as progress.
    """
    progress, max_restarts = (getattr(config, name, 1) for name in ("n_steps", "max_restarts"))
    restarts = Restarts(environments, max_restarts, f"taken {progress} steps")

    def failed(error: EnvironmentFailedError) -> float:
        is_new = not restarts.is_recorded(error.failure)
        pause_s = restarts.pause_s(error.failure, error.steps >= progress)
        if is_new:
            run.log_failure(str(error), printed=bool(restarts.give_up_reason))
        if restarts.give_up_reason:
            raise RunFailedError(restarts.give_up_reason)
        return pause_s

    return failed
