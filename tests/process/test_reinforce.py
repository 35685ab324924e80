"""Tests of REINFORCE runs: output, checkpoints, resume and failures."""

import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
import torch

import hogwild_rl
from hogwild_rl import reinforce

UPDATE = re.compile(
    r"^update (\d+): return mean (-?[\d.]+), std ([\d.]+), min (-?[\d.]+), max (-?[\d.]+)$",
    re.MULTILINE,
)


def execute(*arguments: str) -> str:
    """Output of a program, which must succeed."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_run_prints_updates_and_can_be_resumed_and_evaluated(start) -> None:
    run = start("reinforce", "--total-timesteps", "3000", "--returns", "total", "--hidden", "8")
    code, out, err = run.wait()
    assert code == 0, err
    assert "Warning" not in err
    updates = UPDATE.findall(out)
    assert [int(number) for number, *_ in updates] == list(range(1, len(updates) + 1))
    for mean, std, low, high in (map(float, numbers) for _, *numbers in updates):
        assert low <= mean <= high
        assert std <= high - low
    first = hogwild_rl.load(run.folder).checkpoint
    assert first.algorithm == "reinforce"
    assert first.counters.updates == len(updates) > 5
    assert first.counters.episodes == 16 * len(updates)
    assert 3000 <= first.counters.steps < 3000 + 16 * 500
    last = (run.folder / "progress.csv").read_text().splitlines()[-1].split(",")
    assert int(last[1]) == first.counters.steps

    flags = ("--resume", str(run.folder), "--total-timesteps", "6000")
    assert UPDATE.search(execute("hogwild_rl.reinforce", *flags))
    second = hogwild_rl.load(run.folder).checkpoint
    assert second.counters.steps >= 6000
    assert second.counters.updates > first.counters.updates
    assert (second.settings["returns"], second.settings["hidden"]) == ("total", (8,))
    assert "return" in execute("hogwild_rl.evaluate", str(run.folder), "--episodes", "3")


def test_ctrl_c_saves_a_checkpoint_and_exits(start) -> None:
    run = start("reinforce", "--total-timesteps", "1000000000")
    run.wait_until(run.training, 60)
    os.killpg(run.process.pid, signal.SIGINT)
    code, out, err = run.wait()
    assert code == 130, err
    assert "Traceback" not in err
    assert f"hogwild_rl.reinforce --resume {run.folder}" in out
    assert hogwild_rl.load(run.folder).checkpoint.counters.steps > 0


def test_exception_in_an_environment_ends_the_run_with_a_checkpoint(start) -> None:
    run = start("reinforce", "--env", "tests.envs:FaultyRaise-v0")
    code, out, err = run.wait()
    assert code == 1
    assert "simulated failure" in err
    assert f"--resume {run.folder}" in out
    assert hogwild_rl.load(run.folder).checkpoint.counters.steps > 0


def trained(folder: pathlib.Path, **given: object) -> dict[str, torch.Tensor]:
    """Parameters after a short run in this process."""
    settings = {"total_timesteps": 2000, "hidden": (8,), "quiet": True, "run_dir": str(folder)}
    return reinforce.train(reinforce.Config(**{**settings, **given})).checkpoint.parameters


@pytest.mark.parametrize(
    "given",
    [
        {"baseline": "none", "returns": "total"},
        {"baseline": "mean", "normalize_observations": True},
        {"baseline": "value", "normalize_rewards": True},
        {"env": "Pendulum-v1", "episodes": 2, "total_timesteps": 800},
        {"episodes": 1, "baseline": "none", "env": "tests.envs:Chain-v0", "total_timesteps": 300},
    ],
    ids=str,
)
def test_runs_with_equal_seeds_are_bitwise_equal(tmp_path: pathlib.Path, given) -> None:
    first, second = (trained(tmp_path / name, **given) for name in "ab")
    other = trained(tmp_path / "c", seed=1, **given)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_nonfinite_gradients_are_dropped_and_reported(start) -> None:
    run = start("reinforce", "--env", "tests.envs:FaultyRareNan-v0", "--total-timesteps", "40000")
    code, out, err = run.wait()
    assert code == 0, err
    saved = hogwild_rl.load(run.folder).checkpoint
    assert saved.counters.dropped >= 1
    assert "dropped" in out
    assert all(bool(tensor.isfinite().all()) for tensor in saved.parameters.values())
