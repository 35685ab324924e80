"""Workers that fail or hang are replaced; those that all fail at once are not."""

import time
from typing import Any

import pytest

from hogwild_rl.hogwild.counters import Counters
from hogwild_rl.hogwild.processes import Failure, Workers
from hogwild_rl.hogwild.supervisor import Supervisor
from tests.process import jobs


def supervise(
    target: Any, arguments: Any, counters: Counters, seconds: float = 60.0, **rules: Any
) -> tuple[Supervisor, list[Failure]]:
    """Runs workers under supervision until they have ended, are given up or the time is over."""
    failures: list[Failure] = []
    with Workers(target, (counters, *arguments), len(counters), seed=0) as crew:
        settings = {"max_restarts": 100, "step_timeout_s": 60.0, **rules}
        supervisor = Supervisor(crew, counters, **settings)
        deadline_s = time.monotonic() + seconds
        while (
            supervisor.running and not supervisor.give_up_reason and time.monotonic() < deadline_s
        ):
            failures += supervisor.watch(0.05)
        crew.stop(timeout_s=10)
    return supervisor, failures


@pytest.mark.long
@pytest.mark.parametrize(
    ("how", "printed"),
    [
        ("raise", "worker 1 failed with exit code 1:\nTraceback"),
        ("exit", "worker 1 failed with exit code 7"),
        ("kill", "worker 1 was killed by SIGKILL"),
        ("hang", "worker 1 had no heartbeat for "),
        ("stop", "worker 1 had no heartbeat for "),
    ],
)
def test_a_worker_that_stumbles_is_replaced_again_and_again(how: str, printed: str) -> None:
    """The others go on meanwhile, and every step is counted once."""
    counters, timeout_s = Counters(3), 1.5 if how in ("hang", "stop") else 60.0
    supervisor, failures = supervise(
        jobs.stumble, (how, 60_000), counters, step_timeout_s=timeout_s
    )
    assert supervisor.give_up_reason == ""
    assert supervisor.replaced >= 2
    # The last may still have been due when the others came to the end.
    assert supervisor.replaced <= len(failures) <= supervisor.replaced + 1
    assert all(str(failure).startswith(printed) for failure in failures)
    assert 60_000 <= counters.total("steps") < 60_003
    for failure in failures:
        assert ("in stumble" in failure.traceback) == (how in ("raise", "hang"))
        assert ("the gearbox is on fire" in failure.traceback) == (how == "raise")


def test_what_all_workers_meet_at_once_ends_the_run() -> None:
    began_s = time.monotonic()
    supervisor, failures = supervise(jobs.fail_at_once, (3,), Counters(3))
    assert (
        "every worker failed 2 times in a row before it had counted a step"
        in supervisor.give_up_reason
    )
    assert "the gearbox is on fire" in supervisor.give_up_reason
    assert 6 <= len(failures) <= 12
    assert time.monotonic() - began_s < 20


def test_a_worker_that_fails_at_once_waits_longer_each_time() -> None:
    """It is not the only one: the run goes on, and it is not started all the time."""
    supervisor, failures = supervise(jobs.fail_at_once, (1,), Counters(2), seconds=4.0)
    assert supervisor.give_up_reason == ""
    assert {failure.worker for failure in failures} == {0}
    assert 2 <= len(failures) <= 5  # after 0.25, 0.5, 1 and 2 seconds


def test_the_strict_mode_ends_with_the_first_failure() -> None:
    supervisor, failures = supervise(jobs.stumble, ("raise", 10**9), Counters(2), max_restarts=0)
    assert supervisor.give_up_reason == str(failures[0])
    assert (len(failures), supervisor.replaced) == (1, 0)


def test_a_worker_is_replaced_only_so_often() -> None:
    supervisor, failures = supervise(jobs.stumble, ("exit", 10**9), Counters(2), max_restarts=3)
    assert "worker 1 was restarted 3 times within an hour" in supervisor.give_up_reason
    assert (len(failures), supervisor.replaced) == (4, 3)
