"""Tests of a run's checkpoints: truncated files, kills during a save, full disks."""

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

# Writes beyond 60,000 bytes per file fail, as on a full disk.
SMALL_FILES = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
program, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(f"hogwild_rl.{program}", run_name="__main__", alter_sys=True)
"""

# The process is killed just before the new checkpoint is renamed to its final name.
KILLED_BEFORE_RENAME = """
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
    """Agent of a run with several checkpoints."""
    return a2c.train(a2c.Config(num_envs=4, quiet=True, run_dir=str(folder), **SETTINGS))


@pytest.mark.long
@pytest.mark.parametrize("size", [0, 50, 2_000, -1, None])
def test_resume_falls_back_to_the_previous_checkpoint(
    size: int | None, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counters = trained(tmp_path / "run").checkpoint.counters
    newest, previous = (tmp_path / "run" / f"checkpoint{name}.pt" for name in ("", ".previous"))
    steps = hogwild_rl.load(previous).checkpoint.counters.steps
    assert 0 < steps <= counters.steps
    if size is None:
        newest.unlink()  # as after a kill between the two renames
    else:
        newest.write_bytes(newest.read_bytes()[:size])
    assert hogwild_rl.load(tmp_path / "run").checkpoint.counters.steps == steps
    config = a2c.Config(resume=str(tmp_path / "run"), total_timesteps=40_000, quiet=False)
    after = a2c.train(config).checkpoint.counters
    assert f"resuming from {previous}" in capsys.readouterr().err
    assert 40_000 <= after.steps < 40_000 + 4 * 16
    rows = (tmp_path / "run" / "progress.csv").read_text().splitlines()[1:]
    counted = [int(row.split(",")[1]) for row in rows]
    assert counted == sorted(set(counted))  # rows after the older checkpoint were removed


@pytest.mark.long
def test_valid_checkpoint_remains_after_a_kill_during_a_save(tmp_path: pathlib.Path) -> None:
    """The newest is truncated; the run resumed from the previous one is killed during a save."""
    trained(tmp_path / "run")
    newest, previous = (tmp_path / "run" / f"checkpoint{name}.pt" for name in ("", ".previous"))
    newest.write_bytes(newest.read_bytes()[:50])
    before = previous.read_bytes()
    result = subprocess.run(
        [
            *(sys.executable, "-c", KILLED_BEFORE_RENAME, "--resume", str(tmp_path / "run")),
            *("--total-timesteps", "1000000000"),
        ],
        check=False,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == -signal.SIGKILL
    assert previous.read_bytes() == before
    assert not newest.exists()
    assert hogwild_rl.load(tmp_path / "run").checkpoint.counters.sessions == 1


@pytest.mark.parametrize(
    ("program", "file", "given"),
    [
        ("a2c", "checkpoint.pt", "--num-envs 16 --total-timesteps 60000"),
        ("a3c", "checkpoint.pt", "--workers 1 --total-timesteps 60000"),
        # Its checkpoints and its shared memory, which consists of files, are small.
        ("td3", "replay_0.pt", "--env Pendulum-v1 --hidden 8 --save-replay --total-timesteps 1500"),
    ],
)
def test_full_disk_is_reported_once_and_training_continues(
    program: str, file: str, given: str, tmp_path: pathlib.Path
) -> None:
    flags = [*given.split(), "--checkpoint-every", "0.1", "--run-dir", str(tmp_path / "run")]
    result = subprocess.run(
        [sys.executable, "-c", SMALL_FILES, program, *flags],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count(" cannot be written (") == 1
    assert "Traceback" not in result.stderr
    assert re.search("trained (6.,|1,5)", result.stdout)
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert file not in files
    assert not [name for name in files if name.startswith(".") and name != ".lock"]
