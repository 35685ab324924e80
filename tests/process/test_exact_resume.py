"""Tests of exact resume: an interrupted and resumed run is bitwise equal to a continuous one."""

import contextlib
import csv
import os
import pathlib
import shutil
import signal
import statistics
import threading
import time

import pytest
import torch

from hogwild_rl import a2c, a3c, ppo
from hogwild_rl.runs import resume
from hogwild_rl.runs.checkpoint import CHECKPOINT_FILE, Checkpoint

pytestmark = pytest.mark.long

PLAIN = {
    "env": "CartPole-v1",
    "total_timesteps": 12_000,
    "n_steps": 8,
    "learning_rate": 1e-3,
    "seed": 5,
    "quiet": True,
    "checkpoint_every": 0.01,
}
A2C = {"num_envs": 4, "vectorization": "sync"}
PPO = {**A2C, "batch_size": 8}
A3C = {"workers": 1, "envs_per_worker": 2}
RUNS = {
    "a2c": (a2c, {**A2C, "lr_schedule": "linear", "gae_lambda": 0.9}),
    "a2c-native": (
        a2c,
        {"num_envs": 16, "vectorization": "native", "n_steps": 4, "total_timesteps": 60_000},
    ),
    "a2c-groups": (a2c, {**A2C, "env_groups": 2, "normalize_observations": True}),
    "a2c-lstm": (a2c, {**A2C, "lstm": 16, "normalize_rewards": True}),
    "a3c": (a3c, {**A3C, "lr_schedule": "linear", "gae_lambda": 0.9}),
    "a3c-one-environment": (a3c, {**A3C, "envs_per_worker": 1, "normalize_observations": True}),
    "a3c-lstm": (a3c, {**A3C, "lstm": 16, "normalize_rewards": True}),
    "ppo": (ppo, {**PPO, "total_timesteps": 3_000, "normalize_observations": True}),
    "ppo-pendulum": (ppo, {**PPO, "env": "Pendulum-v1", "total_timesteps": 3_000}),
    "ppo-lstm": (ppo, {**PPO, "lstm": 16, "batch_size": 16, "total_timesteps": 800}),
    "ppo-worker": (
        ppo,
        {"workers": 1, "envs_per_worker": 2, "total_timesteps": 2_000, "batch_size": 8},
    ),
    "a3c-pendulum": (a3c, {**A3C, "env": "Pendulum-v1", "normalize_rewards": True}),
}


def load_checkpoint(run: pathlib.Path) -> Checkpoint:
    return Checkpoint.load(run / CHECKPOINT_FILE)


def assert_equal(actual: object, expected: object, path: str = "") -> None:
    assert type(actual) is type(expected), path
    if isinstance(actual, torch.Tensor):
        assert torch.equal(actual, expected), path
    elif isinstance(actual, dict):
        assert actual.keys() == expected.keys(), path
        for key in actual:
            assert_equal(actual[key], expected[key], f"{path}.{key}")
    elif isinstance(actual, list | tuple):
        assert len(actual) == len(expected), path
        for number, (a, b) in enumerate(zip(actual, expected, strict=True)):
            assert_equal(a, b, f"{path}[{number}]")
    else:
        assert repr(actual) == repr(expected), path  # NaN equals NaN


class Copies:
    """Copies a run's folder in a thread at its first `count` checkpoints."""

    def __init__(self, run: pathlib.Path, count: int) -> None:
        self._run, self._count, self.folders = run, count, []
        self._stopped = threading.Event()

    def __enter__(self) -> "Copies":
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        seen = None
        while not self._stopped.is_set() and len(self.folders) < self._count:
            with contextlib.suppress(OSError):
                inode = (self._run / CHECKPOINT_FILE).stat().st_ino
                if inode != seen:
                    seen, copy = inode, self._run.with_name(f"copy{len(self.folders)}")
                    shutil.copytree(self._run, copy, ignore=shutil.ignore_patterns(".*"))
                    self.folders.append(copy)
            time.sleep(0.005)


@pytest.mark.parametrize("name", RUNS)
def test_run_resumed_from_any_checkpoint_is_bitwise_equal(name, tmp_path) -> None:
    program, overrides = RUNS[name]
    reference = tmp_path / "reference"
    with Copies(reference, 2) as copies:
        program.train(program.Config(run_dir=str(reference), **{**PLAIN, **overrides}))
    assert copies.folders
    for copy in copies.folders:
        before = load_checkpoint(copy)
        assert 0 < before.counters.steps < load_checkpoint(reference).counters.steps
        program.train(program.Config(resume=str(copy)))
        assert_same_result(load_checkpoint(copy), load_checkpoint(reference))


def assert_same_result(actual: Checkpoint, expected: Checkpoint) -> None:
    for name in ("steps", "updates", "episodes", "recent_returns", "recent_lengths"):
        assert getattr(actual.counters, name) == getattr(expected.counters, name)
    for part in ("parameters", "optimizer", "normalization", "worker_state"):
        assert_equal(getattr(actual, part), getattr(expected, part), part)


@pytest.mark.parametrize("program", ["a2c", "a3c"])
def test_interrupted_and_resumed_run_is_bitwise_equal(start, program, tmp_path) -> None:
    flags = (
        "--total-timesteps",
        "60000",
        "--seed",
        "7",
        "--n-steps",
        "8",
        "--learning-rate",
        "1e-3",
    )
    # Not auto: on a busy machine it chooses async, whose environments are not in checkpoints.
    a2c_flags = ("--num-envs", "4", "--vectorization", "sync")
    flags += ("--workers", "1") if program == "a3c" else a2c_flags
    reference, interrupted = start(program, *flags), start(program, *flags)
    interrupted.wait_until(interrupted.training, 60)
    os.killpg(interrupted.process.pid, signal.SIGINT)
    assert interrupted.wait()[0] == 130
    assert 0 < load_checkpoint(interrupted.folder).counters.steps < 60_000
    module = {"a2c": a2c, "a3c": a3c}[program]
    module.train(module.Config(resume=str(interrupted.folder), quiet=True))
    assert reference.wait()[0] == 0
    assert_same_result(load_checkpoint(interrupted.folder), load_checkpoint(reference.folder))


def test_resume_with_other_seed_or_num_envs_restarts_episodes(tmp_path, capsys) -> None:
    settings = {**PLAIN, **A2C, "total_timesteps": 400}
    for number, other in enumerate([{"seed": 6}, {"num_envs": 8}]):
        run = tmp_path / str(number)
        a2c.train(a2c.Config(run_dir=str(run), **settings))
        config = a2c.Config(resume=str(run), total_timesteps=900, quiet=False, **other)
        assert (resume.state_to_resume(load_checkpoint(run), config) is None) == ("seed" in other)
        a2c.train(config)
        printed = capsys.readouterr().out
        assert ("holds another number of environments" in printed) == ("num_envs" in other)
        assert load_checkpoint(run).counters.steps >= 900
        assert len(load_checkpoint(run).worker_state["carried"]["returns"]) == config.num_envs


def test_resume_on_another_device_reports_restarted_episodes(tmp_path, capsys):
    """The generator state has 16 bytes on a GPU and 5,056 on the CPU."""
    run = tmp_path / "run"
    a2c.train(a2c.Config(run_dir=str(run), **{**PLAIN, **A2C, "total_timesteps": 400}))
    path = run / CHECKPOINT_FILE
    saved = Checkpoint.load(path)
    saved.worker_state["generator"] = torch.zeros(16, dtype=torch.uint8)
    saved.save(path)
    a2c.train(a2c.Config(resume=str(run), total_timesteps=900, quiet=False))
    assert "episodes restart: the checkpoint's random stream is of another device" in (
        capsys.readouterr().out
    )
    assert load_checkpoint(run).counters.steps >= 900


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from Box2D
def test_environments_with_native_objects_are_reported_and_restarted(tmp_path, capsys) -> None:
    pytest.importorskip("Box2D")
    settings = {"env": "LunarLander-v3", "num_envs": 2, "vectorization": "sync", "n_steps": 8}
    run = tmp_path / "run"
    a2c.train(a2c.Config(run_dir=str(run), total_timesteps=64, **settings))
    capsys.readouterr()
    a2c.train(a2c.Config(resume=str(run), total_timesteps=128))
    printed = capsys.readouterr().out
    assert "episodes restart: " in printed
    assert "Swig" in printed


def test_resume_with_several_workers_continues_counters_and_statistics(tmp_path) -> None:
    settings = {"workers": 2, "envs_per_worker": 4, "normalize_observations": True, "quiet": True}
    run = tmp_path / "run"
    a3c.train(a3c.Config(run_dir=str(run), total_timesteps=2_000, **settings))
    before = load_checkpoint(run)
    assert before.worker_state is None
    after = a3c.train(a3c.Config(resume=str(run), total_timesteps=4_000, workers=3)).checkpoint
    assert after.counters.steps >= 4_000 > before.counters.steps
    assert after.counters.updates > before.counters.updates
    with (run / "progress.csv").open() as file:
        resumed = [row for row in csv.DictReader(file) if int(row["steps"]) > before.counters.steps]
    assert float(resumed[0]["return_mean"]) == pytest.approx(
        statistics.fmean(before.counters.recent_returns), rel=0.5
    )
    assert (
        after.normalization["observations"]["count"] > before.normalization["observations"]["count"]
    )
