"""Tests of the restart policy: delays before a restart, and reasons to give up."""

from hogwild_rl.hogwild.child import Failure
from hogwild_rl.hogwild.supervisor import Restarts


def failure(number: int) -> Failure:
    return Failure(number, 1, "", "environment")


def test_delays_double_up_to_60_s_and_do_not_overflow() -> None:
    """Thousands of failures would overflow an unbounded power of two."""
    restarts = Restarts(range(2), max_restarts=10_000)
    delays = [restarts.pause_s(failure(0), progressed=False) for _ in range(3_000)]
    assert delays[:10] == [0.25, 0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert set(delays[10:]) == {60}
    assert restarts.pause_s(failure(0), progressed=True) == 0
    assert restarts.pause_s(failure(0), progressed=False) == 0.25
    assert restarts.give_up_reason == ""


def test_indices_may_start_at_any_number() -> None:
    restarts = Restarts(range(4, 6), max_restarts=10, progress="taken 16 steps")
    for number in (4, 4, 4, 5):
        restarts.pause_s(failure(number), progressed=False)
        assert restarts.give_up_reason == ""
    restarts.pause_s(failure(5), progressed=False)
    assert restarts.give_up_reason == (
        "environment 5 failed with exit code 1\nevery environment failed 2 times in a row before "
        "it had taken 16 steps: giving up"
    )


def test_give_up_reasons_without_restarts_and_at_the_limit() -> None:
    strict = Restarts(range(2), max_restarts=0)
    strict.pause_s(failure(1), progressed=True)
    assert strict.give_up_reason == "environment 1 failed with exit code 1"
    limited = Restarts(range(2), max_restarts=2)
    for _ in range(2):
        limited.pause_s(failure(1), progressed=True)
        assert limited.give_up_reason == ""
    limited.pause_s(failure(1), progressed=True)
    assert "environment 1 was restarted 2 times within an hour" in limited.give_up_reason
