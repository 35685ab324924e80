"""A2C whose environments live in processes: those that die or hang are printed and replaced."""

import os
import re
import signal
import time

import pytest

import hogwild_rl
from hogwild_rl import a2c, errors
from hogwild_rl.envs.env_process import EnvironmentFailedError
from hogwild_rl.runs.run import Run
from hogwild_rl.training import launch

pytestmark = pytest.mark.long

ENVS = 2
ASYNC = ("--vectorization", "async", "--num-envs", str(ENVS))


def steps_are_counted(run, total: int) -> None:
    """To the last one: the normaliser has met each of them once, and nothing else."""
    checkpoint = hogwild_rl.load(run.folder).checkpoint
    steps = checkpoint.counters.steps
    assert total <= steps < total + 16 * ENVS
    if checkpoint.normalization:
        for moments in checkpoint.normalization.values():
            assert float(moments["count"]) == steps
    last = (run.folder / "progress.csv").read_text().splitlines()[-1].split(",")
    assert int(last[1]) == steps


@pytest.mark.parametrize(
    ("fault", "printed"),
    [
        ("Raise", "failed with exit code 1:\nTraceback"),
        ("Exit", "failed with exit code 7"),
        ("Segv", "was killed by SIGSEGV:\n"),
        ("Hang", r"had no heartbeat for \d+ s and was killed:\n"),
    ],
)
def test_environments_that_fail_now_and_then_are_replaced(start, fault: str, printed: str) -> None:
    """Each once in a thousand steps: printed with where it was, in the log too."""
    flags = ("--normalize-observations", "--normalize-rewards", "--lstm", "8")
    run = start(
        *("a2c", *ASYNC, "--env", f"tests.envs:Faulty{fault}-v0", *flags),
        *("--total-timesteps", "2500", "--n-steps", "16", "--step-timeout", "5"),
    )
    code, out, err = run.end()
    assert code == 0, err
    steps_are_counted(run, 2500)
    found = re.findall(rf"^environment [01] {printed}", err, re.MULTILINE)
    assert len(found) >= 2, err
    assert err.count("RuntimeError: the gearbox") == (len(found) if fault == "Raise" else 0)
    assert (" in step" in err) == (fault != "Exit")
    assert f"{len(found)} failures: {run.folder / 'failures.log'}" in out
    assert len(re.findall(printed, (run.folder / "failures.log").read_text())) == len(found)


def test_a_killed_environment_is_replaced_at_once(start) -> None:
    run = start(
        *("a2c", *ASYNC, "--env-groups", "2", "--total-timesteps", "1000000000"),
        *("--normalize-rewards", "--normalize-observations"),
    )
    run.until(run.trains, 60)
    for _ in range(3):
        before = set(run.alive())
        victim = max(before)  # the youngest process: an environment
        os.kill(victim, signal.SIGKILL)
        run.until(lambda b=before, v=victim: len(set(run.alive()) - {v}) == len(b), timeout_s=10)
    run.process.terminate()
    code, _, err = run.end()
    assert code == 143
    assert err.count("was killed by SIGKILL") == 3
    steps_are_counted(run, hogwild_rl.load(run.folder).checkpoint.counters.steps)


def test_one_environment_that_always_raises_is_tried_less_and_less_often(start) -> None:
    run = start(
        *("a2c", *ASYNC, "--env", "tests.envs:OneCursedWhenStepped-v0"),
        *("--total-timesteps", "2000"),
    )
    code, _, err = run.end()
    assert code == 0, err
    steps_are_counted(run, 2000)
    failures = err.count("environment 1 failed with exit code 1")
    assert 1 <= failures <= 10
    assert err.count("RuntimeError: the gearbox") == failures


@pytest.mark.parametrize("when", ["Made", "Reset", "Stepped"])
def test_what_every_environment_meets_at_once_ends_the_run(start, when: str) -> None:
    run = start("a2c", *ASYNC, "--env", f"tests.envs:CursedWhen{when}-v0")
    code, _, err = run.end()
    assert code == 1
    assert "every environment failed 2 times in a row before it had taken" in err
    assert 2 * ENVS <= err.count("RuntimeError: the gearbox") <= 4 * ENVS


@pytest.mark.parametrize(
    ("fault", "printed"),
    [
        ("Raise", "failed with exit code 1:\nTraceback"),
        ("Exit", "failed with exit code 7"),
        ("Segv", "was killed by SIGSEGV"),
    ],
)
def test_strictly_the_first_failure_ends_the_run_saved_and_told(start, fault, printed) -> None:
    run = start("a2c", *ASYNC, "--env", f"tests.envs:Faulty{fault}-v0", "--max-restarts", "0")
    code, _, err = run.end()
    assert code == 1
    assert len(re.findall(rf"^environment [01] {printed}", err, re.MULTILINE)) == 1, err
    assert ("the gearbox is on fire" in err) == (fault == "Raise")
    assert hogwild_rl.load(run.folder).checkpoint.counters.steps > 0


@pytest.mark.parametrize("before", ["async", "sync"])
def test_a_resumed_run_begins_new_episodes_in_new_processes(before, tmp_path, capsys) -> None:
    settings = {"env": "CartPole-v1", "num_envs": 2, "n_steps": 8}
    run = tmp_path / "run"
    a2c.train(a2c.Config(run_dir=str(run), total_timesteps=64, vectorization=before, **settings))
    capsys.readouterr()
    again = a2c.Config(resume=str(run), total_timesteps=128, vectorization="async")
    assert a2c.train(again).checkpoint.counters.steps >= 128
    printed = capsys.readouterr().out
    why = "episodes restart: environments run in separate processes: not in checkpoints"
    assert (why in printed) == (before == "async")


def test_a_rank_without_the_run_s_folder_tells_of_its_environments_too(capsys) -> None:
    session = Run("a2c", a2c.Config(), reports=False)
    failed = launch._restart_policy(session, range(4, 8), a2c.Config(max_restarts=1, n_steps=16))
    killed = EnvironmentFailedError(5, -9, "", silent_s=0.0, steps=16)
    assert failed(killed) == 0
    assert capsys.readouterr().err == "environment 5 was killed by SIGKILL\n"
    with pytest.raises(
        errors.RunFailedError, match="environment 5 was restarted 1 times within an"
    ):
        failed(killed)


def test_an_environment_that_hangs_leaves_when_the_parent_is_killed(start) -> None:
    run = start("a2c", *ASYNC, "--env", "tests.envs:FaultyHang-v0")
    run.until(run.trains, 60)
    log = run.folder / "progress.csv"
    run.until(lambda: time.time() - log.stat().st_mtime > 3, 60)
    run.process.kill()
    run.until(lambda: not run.alive(), timeout_s=10)
