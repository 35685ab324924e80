"""Tests of A3C runs: signals, failures, resume, written files and remaining processes."""

import csv
import json
import os
import pathlib
import signal
import tempfile
import threading
import time
from typing import Any

import gymnasium
import pytest
import torch

import hogwild_rl
from hogwild_rl import a3c, errors
from tests import envs


def test_run_writes_the_expected_files(start) -> None:
    run = start("a3c", "--workers", "2", "--total-timesteps", "20000")
    code, out, err = run.wait()
    assert code == 0, err
    assert {path.name for path in run.folder.iterdir()} == {
        ".lock",
        "settings.json",
        "progress.csv",
        "staleness.csv",
        "checkpoint.pt",
        "best.pt",
    }
    assert f"hogwild_rl.evaluate {run.folder}" in out
    assert "Warning" not in err
    counters = hogwild_rl.load(run.folder).checkpoint.counters
    last = (run.folder / "progress.csv").read_text().splitlines()[-1].split(",")
    assert int(last[1]) == counters.steps >= 20000
    assert json.loads((run.folder / "settings.json").read_text())["algorithm"] == "a3c"


def test_ctrl_c_saves_a_checkpoint_and_exits(start) -> None:
    run = start("a3c", "--workers", "2", "--total-timesteps", "1000000000")
    run.wait_until(run.training, 60)
    os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does
    code, out, err = run.wait()
    assert code == 130, err
    assert "Traceback" not in err
    assert f"--resume {run.folder}" in out
    assert hogwild_rl.load(run.folder).checkpoint.counters.steps > 0


def test_second_ctrl_c_exits_immediately(start) -> None:
    run = start(
        "a3c",
        "--workers",
        "2",
        "--env",
        "tests.envs:FaultyHang-v0",
        "--total-timesteps",
        "1000000000",
    )
    run.wait_until(run.is_stalled, 60)
    os.killpg(run.process.pid, signal.SIGINT)
    time.sleep(0.5)  # both workers hang, so the parent is still waiting for them
    assert run.process.poll() is None
    os.killpg(run.process.pid, signal.SIGINT)
    began_s = time.monotonic()
    code, _, err = run.wait()
    assert code == 130
    assert "Traceback" not in err
    assert time.monotonic() - began_s < 5


def test_sigterm_saves_a_checkpoint_and_exits_with_143(start) -> None:
    run = start("a3c", "--workers", "2", "--total-timesteps", "1000000000")
    run.wait_until(run.training, 60)
    run.process.terminate()
    code, _, err = run.wait()
    assert code == 143, err
    assert hogwild_rl.load(run.folder).checkpoint.counters.steps > 0


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_workers_exit_when_the_parent_is_killed(start, state: str) -> None:
    run = start("a3c", "--workers", "2", "--total-timesteps", "1000000000")
    run.wait_until(run.training, 60)
    assert len(run.alive()) >= 4  # parent, server, two workers
    if state == "stopped":
        os.kill(max(run.alive()), signal.SIGSTOP)
    run.process.kill()
    run.wait_until(lambda: not run.alive(), timeout_s=2)


@pytest.mark.parametrize("moment", ["importing", "training"])
def test_killed_parent_leaves_no_temporary_file(start, moment: str) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        flags = ("--workers", "2", "--total-timesteps", "1000000000")
        run = start("a3c", *flags, TMPDIR=temporary)

        def importing() -> bool:
            servers = {
                pid
                for pid in run.alive()
                if "forkserver" in pathlib.Path(f"/proc/{pid}/cmdline").read_text()
            }
            maps = [pathlib.Path(f"/proc/{pid}/maps").read_text() for pid in servers]
            return any("torch" in each for each in maps)

        run.wait_until(importing if moment == "importing" else run.training, 60)
        assert list(pathlib.Path(temporary).glob("*/listener-*"))
        run.process.kill()
        run.wait_until(lambda: not run.alive(), timeout_s=30)
        assert list(pathlib.Path(temporary).iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "printed"),
    [
        ("Raise", "failed with exit code 1:\nTraceback"),
        ("Exit", "failed with exit code 7"),
        ("Segv", "was killed by SIGSEGV:\nFatal Python error: Segmentation fault"),
    ],
)
def test_worker_failure_ends_the_run_with_a_checkpoint(start, fault: str, printed: str) -> None:
    run = start(
        "a3c",
        "--workers",
        "2",
        "--env",
        f"tests.envs:Faulty{fault}-v0",
        "--total-timesteps",
        "1000000",
        "--max-restarts",
        "0",
    )
    code, _, err = run.wait()
    assert code == 1
    assert printed in err
    assert printed in (run.folder / "failures.log").read_text()
    assert ("simulated failure" in err) == (fault == "Raise")
    assert hogwild_rl.load(run.folder).checkpoint.counters.steps > 0


@pytest.mark.long
@pytest.mark.parametrize("fault", ["Raise", "Exit", "Segv", "Hang"])
def test_failed_workers_are_replaced_and_the_run_completes(start, fault: str) -> None:
    run = start(
        *("a3c", "--workers", "2", "--env", f"tests.envs:Faulty{fault}-v0"),
        *("--total-timesteps", "40000", "--step-timeout", "2"),
    )
    code, out, err = run.wait()
    assert code == 0, err
    counters = hogwild_rl.load(run.folder).checkpoint.counters
    assert 40_000 <= counters.steps < 40_000 + 2 * 16 * 16
    printed = err.count("worker 0 ") + err.count("worker 1 ")
    assert printed >= 2
    assert f"{printed} failures: {run.folder / 'failures.log'}" in out
    assert ("in step" in err) == (fault != "Exit")


def test_killed_worker_is_restarted(start) -> None:
    run = start("a3c", "--workers", "2", "--total-timesteps", "1000000000")
    run.wait_until(run.training, 60)
    run.kill_youngest()
    run.process.terminate()
    code, _, err = run.wait()
    assert code == 143
    assert err.count("was killed by SIGKILL") == 1


def test_environment_that_fails_in_every_worker_ends_the_run(start) -> None:
    run = start("a3c", "--workers", "2", "--env", "tests.envs:ExitsInChild-v0")
    code, _, err = run.wait()
    assert code == 1
    assert "every worker failed 2 times in a row before it had counted a step" in err


def test_nonfinite_gradients_are_dropped_and_counted(start) -> None:
    run = start(
        "a3c", "--workers", "2", "--env", "tests.envs:FaultyNan-v0", "--total-timesteps", "5000"
    )
    code, out, err = run.wait()
    assert code == 0, err
    assert "gradients that were not finite" in out
    checkpoint = hogwild_rl.load(run.folder).checkpoint
    assert checkpoint.counters.dropped > 0
    assert checkpoint.counters.updates == 0
    assert all(parameter.isfinite().all() for parameter in checkpoint.parameters.values())


def test_resume_continues_counters_statistics_and_log(start, tmp_path: pathlib.Path) -> None:
    first = start("a3c", "--workers", "2", "--total-timesteps", "20000", "--seed", "3")
    assert first.wait()[0] == 0
    before = hogwild_rl.load(first.folder).checkpoint
    agent = a3c.train(a3c.Config(resume=str(first.folder), total_timesteps=50_000, workers=1))
    after = agent.checkpoint
    assert agent.run_dir == first.folder
    assert after.counters.steps >= 50_000 > before.counters.steps
    assert after.counters.updates > before.counters.updates
    assert after.counters.elapsed_s > before.counters.elapsed_s
    assert after.counters.sessions == 2
    assert after.settings["seed"] == 3
    rows = (first.folder / "progress.csv").read_text().splitlines()
    times, steps = zip(*((float(t), int(n)) for t, n, *_ in csv.reader(rows[1:])), strict=True)
    assert list(times) == sorted(set(times))
    assert list(steps) == sorted(steps)
    assert before.counters.steps in steps


def test_resume_restores_parameters_and_optimizer_statistics(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "run"
    first = a3c.train(a3c.Config(total_timesteps=10_000, workers=1, run_dir=str(folder)))
    # A learning rate near 0 and α near 1 leave the restored values unchanged.
    resumed = a3c.train(
        a3c.Config(
            resume=str(folder), total_timesteps=10_001 + first.checkpoint.counters.steps,
            learning_rate=1e-30, rms_alpha=0.999999, workers=1,
        )
    )  # fmt: skip
    for name, parameter in first.checkpoint.parameters.items():
        assert torch.equal(parameter, resumed.checkpoint.parameters[name])
    before, after = (
        agent.checkpoint.optimizer["state"][0]["square_avg"] for agent in (first, resumed)
    )
    assert before.max() > 0
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-6 * float(before.max()))


def test_runs_with_one_worker_and_equal_seeds_are_equal(tmp_path: pathlib.Path) -> None:
    parameters = []
    for index in range(2):
        config = a3c.Config(
            workers=1, total_timesteps=30_000, seed=7, run_dir=str(tmp_path / str(index))
        )
        parameters.append(a3c.train(config).checkpoint.parameters)
    for name, parameter in parameters[0].items():
        assert torch.equal(parameter, parameters[1][name]), name


class Net(torch.nn.Linear):
    """A caller-supplied network."""

    def __init__(self, space: gymnasium.Space[Any] | None) -> None:
        super().__init__(envs.Chain.states, 8)


def test_custom_network_is_trained_and_must_be_picklable(tmp_path: pathlib.Path) -> None:
    """A network that cannot be sent to workers is rejected before the folder is created."""
    settings: dict[str, Any] = {"env": envs.Chain, "total_timesteps": 2000, "quiet": True}
    agent = a3c.train(a3c.Config(network=Net, workers=2, run_dir=str(tmp_path / "run"), **settings))
    assert agent.checkpoint.settings["network"].endswith("Net")
    assert agent.evaluate(1).shape == (1,)
    with pytest.raises(errors.UserError, match="Net is a function: pass it"):
        hogwild_rl.load(tmp_path / "run")
    loaded = hogwild_rl.load(tmp_path / "run", network=Net)
    assert (loaded.evaluate(2, env=envs.Chain) == agent.evaluate(2)).all()
    lock = threading.Lock()
    network = lambda _: Net(None) if lock else None
    refused = a3c.Config(network=network, run_dir=str(tmp_path / "other"), **settings)
    with pytest.raises(errors.UserError, match="cannot be sent to workers") as caught:
        a3c.train(refused)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "other").exists()


def test_callable_environment_trains_with_more_workers_than_cores(tmp_path: pathlib.Path) -> None:
    config = a3c.Config(
        env=envs.truncated_clock, workers=5, total_timesteps=5000, run_dir=str(tmp_path / "run")
    )
    agent = a3c.train(config)
    assert agent.evaluate(2).tolist() == [10.0, 10.0]
    loaded = hogwild_rl.load(tmp_path / "run")
    with pytest.raises(errors.UserError, match="truncated_clock"):
        loaded.evaluate(1)
    assert loaded.evaluate(1, env=envs.truncated_clock).tolist() == [10.0]
