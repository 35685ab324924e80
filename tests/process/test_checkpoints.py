"""Checkpoints of whole runs: what is there when one is torn, and when none can be written."""

import os
import pathlib
import re
import signal
import subprocess
import sys
from typing import Any

import pytest

import hogwild_rl
from hogwild_rl import a2c
from hogwild_rl.runs.agent import Agent

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS: dict[str, Any] = {"total_timesteps": 30_000, "checkpoint_every": 0.2, "hidden": (8,)}

# Writes of more than so many bytes to one file fail, as on a full disk.
SMALL_FILES = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
program, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(f"hogwild_rl.{program}", run_name="__main__", alter_sys=True)
"""

# Killed as soon as one checkpoint has been renamed to make room for the next.
KILLED_BETWEEN_TWO_NAMES = """
import os, pathlib, runpy, signal, sys
from hogwild_rl.runs import checkpoint
rename = pathlib.Path.replace
def replace(path, target):
    if target.name == checkpoint.CHECKPOINT_FILE:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)
pathlib.Path.replace = replace
sys.argv = ["a2c", *sys.argv[1:]]
runpy.run_module("hogwild_rl.a2c", run_name="__main__")
"""


def trained(folder: pathlib.Path) -> Agent:
    """A run with several checkpoints."""
    return a2c.train(a2c.Config(num_envs=4, quiet=True, run_dir=str(folder), **SETTINGS))


@pytest.mark.long
@pytest.mark.parametrize("kept", [0, 50, 2_000, -1, None])
def test_a_torn_checkpoint_is_passed_over(
    kept: int | None, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = trained(tmp_path / "run").checkpoint.counters
    newest, previous = (tmp_path / "run" / f"checkpoint{name}.pt" for name in ("", ".previous"))
    steps = hogwild_rl.load(previous).checkpoint.counters.steps
    assert 0 < steps <= whole.steps
    if kept is None:
        newest.unlink()  # killed between the two names
    else:
        newest.write_bytes(newest.read_bytes()[:kept])
    assert hogwild_rl.load(tmp_path / "run").checkpoint.counters.steps == steps
    again = a2c.Config(resume=str(tmp_path / "run"), total_timesteps=40_000, quiet=False)
    after = a2c.train(again).checkpoint.counters
    assert f"resuming from {previous}" in capsys.readouterr().err
    assert 40_000 <= after.steps < 40_000 + 4 * 16
    rows = (tmp_path / "run" / "progress.csv").read_text().splitlines()[1:]
    counted = [int(row.split(",")[1]) for row in rows]
    assert counted == sorted(set(counted))  # what came after the older checkpoint is struck out


@pytest.mark.long
def test_there_is_always_a_whole_checkpoint_under_its_name(tmp_path: pathlib.Path) -> None:
    """Also when the newest is torn and a run that goes on from the one before is killed saving."""
    trained(tmp_path / "run")
    newest, previous = (tmp_path / "run" / f"checkpoint{name}.pt" for name in ("", ".previous"))
    newest.write_bytes(newest.read_bytes()[:50])
    before = previous.read_bytes()
    ended = subprocess.run(
        [
            *(sys.executable, "-c", KILLED_BETWEEN_TWO_NAMES, "--resume", str(tmp_path / "run")),
            *("--total-timesteps", "1000000000"),
        ],
        check=False,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == -signal.SIGKILL
    assert previous.read_bytes() == before
    assert not newest.exists()
    assert hogwild_rl.load(tmp_path / "run").checkpoint.counters.sessions == 1


@pytest.mark.parametrize(
    ("program", "file", "given"),
    [
        ("a2c", "checkpoint.pt", "--num-envs 16 --total-timesteps 60000"),
        ("a3c", "checkpoint.pt", "--workers 1 --total-timesteps 60000"),
        # Its checkpoints, and its share of the memory that files are made of, are small.
        ("td3", "replay_0.pt", "--env Pendulum-v1 --hidden 8 --save-replay --total-timesteps 1500"),
    ],
)
def test_a_disk_that_is_full_is_told_once_and_training_goes_on(
    program: str, file: str, given: str, tmp_path: pathlib.Path
) -> None:
    flags = [*given.split(), "--checkpoint-every", "0.1", "--run-dir", str(tmp_path / "run")]
    ended = subprocess.run(
        [sys.executable, "-c", SMALL_FILES, program, *flags],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count(" cannot be written (") == 1
    assert "Traceback" not in ended.stderr
    assert re.search("trained (6.,|1,5)", ended.stdout)
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert file not in left
    assert not any(name.startswith(".") for name in left)
