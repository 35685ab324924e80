"""Tests of A2C with async environments: crashed and hung ones are reported and replaced."""

import re
import time

import pytest

import hogwild_rl
from hogwild_rl import a2c, errors
from hogwild_rl.envs.env_process import EnvironmentFailedError
from hogwild_rl.hogwild.child import Failure
from hogwild_rl.runs.run import Run
from hogwild_rl.training import launch

pytestmark = pytest.mark.long

ENVS = 2
ASYNC = ("--vectorization", "async", "--num-envs", str(ENVS))


def assert_steps_counted(run, total: int) -> None:
    """Checks that log, checkpoint and normalizer have counted every step exactly once."""
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
def test_failing_environments_are_replaced(start, fault: str, printed: str) -> None:
    """Each fails once per 1,000 steps; the failure is printed and logged with its traceback."""
    flags = ("--normalize-observations", "--normalize-rewards", "--lstm", "8")
    run = start(
        *("a2c", *ASYNC, "--env", f"tests.envs:Faulty{fault}-v0", *flags),
        *("--total-timesteps", "2500", "--n-steps", "16", "--step-timeout", "5"),
    )
    code, out, err = run.wait()
    assert code == 0, err
    assert_steps_counted(run, 2500)
    found = re.findall(rf"^environment [01] {printed}", err, re.MULTILINE)
    assert len(found) >= 2, err
    assert err.count("RuntimeError: simulated failure") == (len(found) if fault == "Raise" else 0)
    assert (" in step" in err) == (fault != "Exit")
    assert f"{len(found)} failures: {run.folder / 'failures.log'}" in out
    assert len(re.findall(printed, (run.folder / "failures.log").read_text())) == len(found)


def test_killed_environment_is_replaced(start) -> None:
    run = start(
        *("a2c", *ASYNC, "--env-groups", "2", "--total-timesteps", "1000000000"),
        *("--normalize-rewards", "--normalize-observations"),
    )
    run.wait_until(run.training, 60)
    for _ in range(3):
        run.kill_youngest()
    run.process.terminate()
    code, _, err = run.wait()
    assert code == 143
    assert err.count("was killed by SIGKILL") == 3
    assert_steps_counted(run, hogwild_rl.load(run.folder).checkpoint.counters.steps)


def test_restarts_of_an_environment_that_always_raises_are_delayed(start) -> None:
    run = start(
        *("a2c", *ASYNC, "--env", "tests.envs:OneFailingWhenStepped-v0"),
        *("--total-timesteps", "2000"),
    )
    code, _, err = run.wait()
    assert code == 0, err
    assert_steps_counted(run, 2000)
    failures = err.count("environment 1 failed with exit code 1")
    assert 1 <= failures <= 10
    assert err.count("RuntimeError: simulated failure") == failures


@pytest.mark.parametrize("when", ["Made", "Reset", "Stepped"])
def test_failure_of_every_environment_ends_the_run(start, when: str) -> None:
    run = start("a2c", *ASYNC, "--env", f"tests.envs:FailingWhen{when}-v0")
    code, _, err = run.wait()
    assert code == 1
    assert "every environment failed 2 times in a row before it had taken" in err
    assert 2 * ENVS <= err.count("RuntimeError: simulated failure") <= 4 * ENVS


@pytest.mark.parametrize(
    ("fault", "printed"),
    [
        ("Raise", "failed with exit code 1:\nTraceback"),
        ("Exit", "failed with exit code 7"),
        ("Segv", "was killed by SIGSEGV"),
    ],
)
def test_max_restarts_0_ends_the_run_with_a_checkpoint(start, fault, printed) -> None:
    run = start("a2c", *ASYNC, "--env", f"tests.envs:Faulty{fault}-v0", "--max-restarts", "0")
    code, _, err = run.wait()
    assert code == 1
    assert len(re.findall(rf"^environment [01] {printed}", err, re.MULTILINE)) == 1, err
    assert ("simulated failure" in err) == (fault == "Raise")
    assert hogwild_rl.load(run.folder).checkpoint.counters.steps > 0


@pytest.mark.parametrize("before", ["async", "sync"])
def test_resume_restarts_the_episodes_of_async_environments(before, tmp_path, capsys) -> None:
    settings = {"env": "CartPole-v1", "num_envs": 2, "n_steps": 8}
    run = tmp_path / "run"
    a2c.train(a2c.Config(run_dir=str(run), total_timesteps=64, vectorization=before, **settings))
    capsys.readouterr()
    config = a2c.Config(resume=str(run), total_timesteps=128, vectorization="async")
    assert a2c.train(config).checkpoint.counters.steps >= 128
    printed = capsys.readouterr().out
    reason = "episodes restart: environments run in separate processes: not in checkpoints"
    assert (reason in printed) == (before == "async")


def test_rank_without_run_folder_reports_its_environment_failures(capsys) -> None:
    run = Run("a2c", a2c.Config(), reports=False)
    failed = launch._restart_policy(run, range(4, 8), a2c.Config(max_restarts=1, n_steps=16))
    killed = EnvironmentFailedError(Failure(5, -9, "", "environment"), steps=16)
    assert failed(killed) == 0
    assert capsys.readouterr().err == "environment 5 was killed by SIGKILL\n"
    with pytest.raises(
        errors.RunFailedError, match="environment 5 was restarted 1 times within an"
    ):
        failed(killed)


def test_hung_environment_exits_when_the_parent_is_killed(start) -> None:
    run = start("a2c", *ASYNC, "--env", "tests.envs:FaultyHang-v0")
    run.wait_until(run.training, 60)
    log = run.folder / "progress.csv"
    run.wait_until(lambda: time.time() - log.stat().st_mtime > 3, 60)
    run.process.kill()
    run.wait_until(lambda: not run.alive(), timeout_s=10)
