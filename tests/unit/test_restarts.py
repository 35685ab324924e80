"""When a process that failed is replaced, and when a run is given up."""

from hogwild_rl.hogwild.processes import Failure
from hogwild_rl.hogwild.supervisor import Restarts


def failure(number: int) -> Failure:
    return Failure(number, 1, "", "environment")


def test_pauses_double_up_to_a_minute_and_stay_there() -> None:
    """However often: two to the power of some thousands is no number."""
    restarts = Restarts(range(2), max_restarts=10_000)
    pauses = [restarts.pause_s(failure(0), useful=False) for _ in range(3_000)]
    assert pauses[:10] == [0.25, 0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert set(pauses[10:]) == {60}
    assert restarts.pause_s(failure(0), useful=True) == 0
    assert restarts.pause_s(failure(0), useful=False) == 0.25
    assert restarts.give_up_reason == ""


def test_numbers_may_begin_anywhere() -> None:
    restarts = Restarts(range(4, 6), max_restarts=10, use="taken 16 steps")
    for number in (4, 4, 4, 5):
        restarts.pause_s(failure(number), useful=False)
        assert restarts.give_up_reason == ""
    restarts.pause_s(failure(5), useful=False)
    assert restarts.give_up_reason == (
        "environment 5 failed with exit code 1\nevery environment failed 2 times in a row before "
        "it had taken 16 steps: giving up"
    )


def test_the_strict_rule_and_the_limit() -> None:
    strict = Restarts(range(2), max_restarts=0)
    strict.pause_s(failure(1), useful=True)
    assert strict.give_up_reason == "environment 1 failed with exit code 1"
    limited = Restarts(range(2), max_restarts=2)
    for _ in range(2):
        limited.pause_s(failure(1), useful=True)
        assert limited.give_up_reason == ""
    limited.pause_s(failure(1), useful=True)
    assert "environment 1 was restarted 2 times within an hour" in limited.give_up_reason
