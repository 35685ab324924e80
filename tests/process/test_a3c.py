"""Whole runs as processes: what ends them, what they leave, and who is still there afterwards."""

import csv
import json
import os
import pathlib
import signal
import tempfile
import time
from typing import Any

import gymnasium
import pytest
import torch

import hogwild_rl
from hogwild_rl import a3c, errors
from tests import envs


def test_a_run_trains_and_leaves_its_folder_and_nothing_else(start) -> None:
    run = start("a3c", "--workers", "2", "--total-timesteps", "20000")
    code, out, err = run.end()
    assert code == 0, err
    assert {path.name for path in run.folder.iterdir()} == {
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


def test_ctrl_c_once_saves_and_ends_cleanly(start) -> None:
    run = start("a3c", "--workers", "2", "--total-timesteps", "1000000000")
    run.until(run.trains, 60)
    os.killpg(run.process.pid, signal.SIGINT)  # a terminal sends it to everybody
    code, out, err = run.end()
    assert code == 130, err
    assert "Traceback" not in err
    assert f"--resume {run.folder}" in out
    assert hogwild_rl.load(run.folder).checkpoint.counters.steps > 0


def test_ctrl_c_twice_ends_at_once(start) -> None:
    run = start(
        "a3c",
        "--workers",
        "2",
        "--env",
        "tests.envs:FaultyHang-v0",
        "--total-timesteps",
        "1000000000",
    )
    run.until(run.stands_still, 60)
    os.killpg(run.process.pid, signal.SIGINT)
    time.sleep(0.5)  # both workers hang, so the parent is still waiting for them
    assert run.process.poll() is None
    os.killpg(run.process.pid, signal.SIGINT)
    began_s = time.monotonic()
    code, _, err = run.end()
    assert code == 130
    assert "Traceback" not in err
    assert time.monotonic() - began_s < 5


def test_sigterm_saves_and_ends_with_the_usual_code(start) -> None:
    run = start("a3c", "--workers", "2", "--total-timesteps", "1000000000")
    run.until(run.trains, 60)
    run.process.terminate()
    code, _, err = run.end()
    assert code == 143, err
    assert hogwild_rl.load(run.folder).checkpoint.counters.steps > 0


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_workers_leave_when_the_parent_is_killed(start, state: str) -> None:
    run = start("a3c", "--workers", "2", "--total-timesteps", "1000000000")
    run.until(run.trains, 60)
    assert len(run.alive()) >= 4  # parent, server, two workers
    if state == "stopped":
        os.kill(max(run.alive()), signal.SIGSTOP)
    run.process.kill()
    run.until(lambda: not run.alive(), timeout_s=2)


@pytest.mark.parametrize("moment", ["importing", "training"])
def test_a_parent_that_is_killed_leaves_no_temporary_file(start, moment: str) -> None:
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

        run.until(importing if moment == "importing" else run.trains, 60)
        assert list(pathlib.Path(temporary).glob("*/listener-*"))
        run.process.kill()
        run.until(lambda: not run.alive(), timeout_s=30)
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
def test_a_worker_that_fails_ends_the_run_saved_and_told(start, fault: str, printed: str) -> None:
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
    code, _, err = run.end()
    assert code == 1
    assert printed in err
    assert printed in (run.folder / "failures.log").read_text()
    assert ("the gearbox is on fire" in err) == (fault == "Raise")
    assert hogwild_rl.load(run.folder).checkpoint.counters.steps > 0


@pytest.mark.long
@pytest.mark.parametrize("fault", ["Raise", "Exit", "Segv", "Hang"])
def test_workers_that_fail_are_replaced_and_the_run_reaches_its_end(start, fault: str) -> None:
    run = start(
        *("a3c", "--workers", "2", "--env", f"tests.envs:Faulty{fault}-v0"),
        *("--total-timesteps", "40000", "--step-timeout", "2"),
    )
    code, out, err = run.end()
    assert code == 0, err
    counters = hogwild_rl.load(run.folder).checkpoint.counters
    assert 40_000 <= counters.steps < 40_000 + 2 * 16 * 16
    printed = err.count("worker 0 ") + err.count("worker 1 ")
    assert printed >= 2
    assert f"{printed} failures: {run.folder / 'failures.log'}" in out
    assert ("in step" in err) == (fault != "Exit")


def test_a_killed_worker_is_restarted(start) -> None:
    run = start("a3c", "--workers", "2", "--total-timesteps", "1000000000")
    run.until(run.trains, 60)
    before = set(run.alive())
    victim = max(before)  # the youngest process: a worker
    os.kill(victim, signal.SIGKILL)
    run.until(lambda: len(set(run.alive()) - {victim}) == len(before), timeout_s=10)
    run.process.terminate()
    code, _, err = run.end()
    assert code == 143
    assert err.count("was killed by SIGKILL") == 1


def test_an_environment_that_no_worker_can_run_ends_the_run(start) -> None:
    run = start("a3c", "--workers", "2", "--env", "tests.envs:DiesInAChild-v0")
    code, _, err = run.end()
    assert code == 1
    assert "every worker failed 2 times in a row before it had counted a step" in err


def test_gradients_that_are_not_finite_are_dropped_and_counted(start) -> None:
    run = start(
        "a3c", "--workers", "2", "--env", "tests.envs:FaultyNan-v0", "--total-timesteps", "5000"
    )
    code, out, err = run.end()
    assert code == 0, err
    assert "gradients that were not finite" in out
    checkpoint = hogwild_rl.load(run.folder).checkpoint
    assert checkpoint.counters.dropped > 0
    assert checkpoint.counters.updates == 0
    assert all(parameter.isfinite().all() for parameter in checkpoint.parameters.values())


def test_resume_goes_on_with_counters_statistics_and_log(start, tmp_path: pathlib.Path) -> None:
    first = start("a3c", "--workers", "2", "--total-timesteps", "20000", "--seed", "3")
    assert first.end()[0] == 0
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


def test_resumed_parameters_and_statistics_are_those_saved(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "run"
    first = a3c.train(a3c.Config(total_timesteps=10_000, workers=1, run_dir=str(folder)))
    # A learning rate of next to nothing and α of next to 1: what is there is what was restored.
    again = a3c.train(
        a3c.Config(
            resume=str(folder), total_timesteps=10_001 + first.checkpoint.counters.steps,
            learning_rate=1e-30, rms_alpha=0.999999, workers=1,
        )
    )  # fmt: skip
    for name, parameter in first.checkpoint.parameters.items():
        assert torch.equal(parameter, again.checkpoint.parameters[name])
    before, after = (
        agent.checkpoint.optimizer["state"][0]["square_avg"] for agent in (first, again)
    )
    assert before.max() > 0
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-6 * float(before.max()))


def test_one_worker_with_a_seed_gives_the_same_parameters_twice(tmp_path: pathlib.Path) -> None:
    parameters = []
    for index in range(2):
        config = a3c.Config(
            workers=1, total_timesteps=30_000, seed=7, run_dir=str(tmp_path / str(index))
        )
        parameters.append(a3c.train(config).checkpoint.parameters)
    for name, parameter in parameters[0].items():
        assert torch.equal(parameter, parameters[1][name]), name


class Own(torch.nn.Linear):
    """A caller's network."""

    def __init__(self, space: gymnasium.Space[Any] | None) -> None:
        super().__init__(envs.Chain.states, 8)


def test_a_network_of_ones_own_is_trained_and_must_be_sendable(tmp_path: pathlib.Path) -> None:
    """To the workers; what cannot be is refused before there is a folder."""
    settings: dict[str, Any] = {"env": envs.Chain, "total_timesteps": 2000, "quiet": True}
    agent = a3c.train(a3c.Config(network=Own, workers=2, run_dir=str(tmp_path / "run"), **settings))
    assert agent.checkpoint.settings["network"].endswith("Own")
    assert agent.evaluate(1).shape == (1,)
    with pytest.raises(errors.UserError, match="Own is a function: pass it"):
        hogwild_rl.load(tmp_path / "run")
    loaded = hogwild_rl.load(tmp_path / "run", network=Own)
    assert (loaded.evaluate(2, env=envs.Chain) == agent.evaluate(2)).all()
    refused = a3c.Config(network=lambda _: Own(None), run_dir=str(tmp_path / "other"), **settings)
    with pytest.raises(errors.UserError, match="cannot be sent to workers") as caught:
        a3c.train(refused)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "other").exists()


def test_a_callable_environment_and_more_workers_than_cores(tmp_path: pathlib.Path) -> None:
    config = a3c.Config(
        env=envs.truncated_clock, workers=5, total_timesteps=5000, run_dir=str(tmp_path / "run")
    )
    agent = a3c.train(config)
    assert agent.evaluate(2).tolist() == [10.0, 10.0]
    again = hogwild_rl.load(tmp_path / "run")
    with pytest.raises(errors.UserError, match="truncated_clock"):
        again.evaluate(1)
    assert again.evaluate(1, env=envs.truncated_clock).tolist() == [10.0]
