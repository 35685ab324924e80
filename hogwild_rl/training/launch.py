"""Starts the workers of a run, in processes or in this one, and watches them."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hogwild_rl import errors
from hogwild_rl.config import base
from hogwild_rl.envs.env_process import EnvironmentFailedError
from hogwild_rl.hogwild.counters import Counters
from hogwild_rl.hogwild.processes import Failure, Worker, Workers
from hogwild_rl.hogwild.supervisor import Restarts, Supervisor
from hogwild_rl.runs.agent import Agent
from hogwild_rl.runs.run import Run
from hogwild_rl.training.exact_resume import SafePoint

_OBSERVE_EVERY_S = 0.05
_STOP_TIMEOUT_S = 10.0


def in_processes(
    session: Run,
    counters: Counters,
    work: Callable[..., None],
    arguments: tuple[Any, ...],
    config: base.FaultToleranceConfig,
    safe_point: SafePoint | None = None,
) -> Agent:
    """Lets as many workers as there are counters do ``work(worker, *arguments)``, and watches them.

    Workers that fail or hang are printed and replaced.

    Args:
        session: opened.
        counters: that they count in.
        work: a function at the top level of a module.
        arguments: picklable; tensors in shared memory stay shared.
        config: of the run.
        safe_point: where the only worker says what it is in the middle of.

    Raises:
        RunFailedError: they failed too often, or all at once; a checkpoint was written.
        KeyboardInterrupt, SystemExit: the run was interrupted, likewise.
    """
    cores = base.usable_cores()
    if len(counters) > cores:
        session.info(f"workers {len(counters)} on {cores} usable cores: they take turns")
    crew = Workers(work, arguments, len(counters), config.seed, session.before.sessions)
    give_up_reason = "the run was broken off"
    with session.interruptible():
        try:
            with _started(crew):
                restarts = (config.max_restarts, config.step_timeout)
                supervisor = Supervisor(crew, counters, *restarts)
                while supervisor.running and not supervisor.give_up_reason and not session.ending:
                    for failure in supervisor.watch(_OBSERVE_EVERY_S):
                        session.log_failure(str(failure), printed=bool(supervisor.give_up_reason))
                    if safe_point is None or not session.checkpoint_due:
                        session.observe(counters)
                    elif safe_point.captured():
                        session.observe(counters, safe_point.state)
                        safe_point.release()
                for failure in crew.stop(_STOP_TIMEOUT_S):
                    session.log_failure(str(failure))
                give_up_reason = supervisor.give_up_reason
        finally:
            left = None if safe_point is None else safe_point.state
            agent = session.close(counters, bool(give_up_reason), left)
            if safe_point is not None:
                safe_point.remove()
    if give_up_reason:
        raise errors.RunFailedError(give_up_reason)
    return agent


@contextlib.contextmanager
def _started(crew: Workers) -> Iterator[None]:
    """Inside, the workers run."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(crew)
        except (OSError, EOFError) as error:  # the latter where the server they come from failed
            raise errors.RunFailedError(f"the workers cannot be started ({error})") from error
        yield


def in_this_process(
    session: Run,
    counters: Counters,
    work: Callable[..., None],
    arguments: tuple[Any, ...],
    config: base.FaultToleranceConfig,
) -> Agent:
    """Does ``work(worker, *arguments)`` in this process, which watches itself meanwhile.

    Raises:
        KeyboardInterrupt, SystemExit: the run was interrupted; a checkpoint was written.
    """
    finished = False
    worker = Worker(0, session.before.sessions, config.seed, _watch(session, counters))
    with session.interruptible():
        try:
            work(worker, *arguments)
            finished = True
        finally:
            agent = session.close(counters, failed=not finished)
    return agent


def _watch(session: Run, counters: Counters) -> Callable[[], bool]:
    """Tells whether the run is ending, and looks at how it goes from time to time."""
    observed_s = time.monotonic()

    def ending() -> bool:
        nonlocal observed_s
        if time.monotonic() - observed_s >= _OBSERVE_EVERY_S:
            session.observe(counters)
            observed_s = time.monotonic()
        return session.ending

    return ending


def restart_policy(
    session: Run, environments: Sequence[int], config: base.FaultToleranceConfig, useful_steps: int
) -> Callable[[EnvironmentFailedError], float]:
    """Tells of environments in processes that fail, and says when they are replaced.

    Args:
        session: opened.
        environments: numbers of all that there are.
        config: of the run.
        useful_steps: how many a process must have taken not to have failed at once.

    Returns:
        What `ProcessVectorEnv` takes as `failed`; it raises RunFailedError where they failed too
        often, or all at once.
    """
    restarts = Restarts(environments, config.max_restarts, f"taken {useful_steps} steps")

    def failed(error: EnvironmentFailedError) -> float:
        failure = Failure(
            error.environment, error.exit_code, error.traceback, "environment", error.silent_s
        )
        pause_s = restarts.pause_s(failure, error.steps >= useful_steps)
        session.log_failure(str(failure), printed=bool(restarts.give_up_reason))
        if restarts.give_up_reason:
            raise errors.RunFailedError(restarts.give_up_reason)
        return pause_s

    return failed
