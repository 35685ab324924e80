"""Tests of the supervisor: restarts of failed and hung workers, and giving up."""

import time
from typing import Any

import pytest

from hogwild_rl.hogwild.counters import Counters
from hogwild_rl.hogwild.processes import Failure, Workers
from hogwild_rl.hogwild.supervisor import Supervisor
from tests.process import jobs


def supervise(
    target: Any, arguments: Any, counters: Counters, limit_s: float = 60.0, **options: Any
) -> tuple[Supervisor, list[Failure]]:
    """Supervises workers until they exit, the supervisor gives up or the time limit is reached."""
    failures: list[Failure] = []
    with Workers(target, (counters, *arguments), len(counters), seed=0) as workers:
        settings = {"max_restarts": 100, "step_timeout_s": 60.0, **options}
        supervisor = Supervisor(workers, counters, **settings)
        deadline_s = time.monotonic() + limit_s
        while (
            supervisor.running and not supervisor.give_up_reason and time.monotonic() < deadline_s
        ):
            failures += supervisor.watch(0.05)
        workers.stop(timeout_s=10)
    return supervisor, failures


@pytest.mark.long
@pytest.mark.parametrize(
    ("mode", "printed"),
    [
        ("raise", "worker 1 failed with exit code 1:\nTraceback"),
        ("exit", "worker 1 failed with exit code 7"),
        ("kill", "worker 1 was killed by SIGKILL"),
        ("hang", "worker 1 had no heartbeat for "),
        ("stop", "worker 1 had no heartbeat for "),
    ],
)
def test_failing_worker_is_replaced_every_time(mode: str, printed: str) -> None:
    """The other workers continue, and every step is counted once."""
    counters, timeout_s = Counters(3), 1.5 if mode in ("hang", "stop") else 60.0
    supervisor, failures = supervise(
        jobs.fail_later, (mode, 60_000), counters, step_timeout_s=timeout_s
    )
    assert supervisor.give_up_reason == ""
    assert supervisor.replaced >= 2
    # The last restart may still have been pending when the others finished.
    assert supervisor.replaced <= len(failures) <= supervisor.replaced + 1
    assert all(str(failure).startswith(printed) for failure in failures)
    assert 60_000 <= counters.total("steps") < 60_003
    for failure in failures:
        assert ("in fail_later" in failure.traceback) == (mode in ("raise", "hang"))
        assert ("simulated failure" in failure.traceback) == (mode == "raise")


def test_supervisor_gives_up_if_all_workers_fail_before_the_first_step() -> None:
    began_s = time.monotonic()
    supervisor, failures = supervise(jobs.fail_before_first_step, (3,), Counters(3))
    assert (
        "every worker failed 2 times in a row before it had counted a step"
        in supervisor.give_up_reason
    )
    assert "simulated failure" in supervisor.give_up_reason
    assert 6 <= len(failures) <= 12
    assert time.monotonic() - began_s < 20


def test_restart_delay_grows_with_failures_without_progress() -> None:
    """The run continues, since another worker does not fail."""
    supervisor, failures = supervise(jobs.fail_before_first_step, (1,), Counters(2), limit_s=4.0)
    assert supervisor.give_up_reason == ""
    assert {failure.index for failure in failures} == {0}
    assert 2 <= len(failures) <= 5  # after 0.25, 0.5, 1 and 2 seconds


def test_supervisor_without_restarts_gives_up_at_the_first_failure() -> None:
    supervisor, failures = supervise(jobs.fail_later, ("raise", 10**9), Counters(2), max_restarts=0)
    assert supervisor.give_up_reason == str(failures[0])
    assert (len(failures), supervisor.replaced) == (1, 0)


def test_supervisor_gives_up_after_max_restarts() -> None:
    supervisor, failures = supervise(jobs.fail_later, ("exit", 10**9), Counters(2), max_restarts=3)
    assert "worker 1 was restarted 3 times within an hour" in supervisor.give_up_reason
    assert (len(failures), supervisor.replaced) == (4, 3)
