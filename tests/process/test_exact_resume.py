"""A run that was stopped and resumed ends as the one that was never stopped, bit for bit."""

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

from hogwild_rl import a2c, a3c
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
    "a3c-pendulum": (a3c, {**A3C, "env": "Pendulum-v1", "normalize_rewards": True}),
}


def end_of(run: pathlib.Path) -> Checkpoint:
    return Checkpoint.load(run / CHECKPOINT_FILE)


def assert_equal(one: object, other: object, path: str = "") -> None:
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_equal(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{path}[{number}]")
    else:
        assert repr(one) == repr(other), path  # also where it is NaN


class Copies:
    """Copies of a run's folder as it was at some of its checkpoints."""

    def __init__(self, run: pathlib.Path, count: int) -> None:
        self._run, self._count, self.folders = run, count, []
        self._ended = threading.Event()

    def __enter__(self) -> "Copies":
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        seen = None
        while not self._ended.is_set() and len(self.folders) < self._count:
            with contextlib.suppress(OSError):
                inode = (self._run / CHECKPOINT_FILE).stat().st_ino
                if inode != seen:
                    seen, copy = inode, self._run.with_name(f"copy{len(self.folders)}")
                    shutil.copytree(self._run, copy, ignore=shutil.ignore_patterns(".*"))
                    self.folders.append(copy)
            time.sleep(0.005)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_resumed_from_any_checkpoint_ends_as_it_did_itself(name, tmp_path) -> None:
    program, own = RUNS[name]
    whole = tmp_path / "whole"
    with Copies(whole, 2) as copies:
        program.train(program.Config(run_dir=str(whole), **{**PLAIN, **own}))
    assert copies.folders
    for copy in copies.folders:
        before = end_of(copy)
        assert 0 < before.counters.steps < end_of(whole).counters.steps
        program.train(program.Config(resume=str(copy)))
        assert_same_end(end_of(whole), end_of(copy))


def assert_same_end(one: Checkpoint, other: Checkpoint) -> None:
    for name in ("steps", "updates", "episodes", "recent_returns", "recent_lengths"):
        assert getattr(one.counters, name) == getattr(other.counters, name)
    for part in ("parameters", "optimizer", "normalization", "worker_state"):
        assert_equal(getattr(one, part), getattr(other, part), part)


@pytest.mark.parametrize("program", ["a2c", "a3c"])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(start, program, tmp_path) -> None:
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
    # Not auto: on a busy machine it chooses processes, whose environments cannot be saved.
    a2c_flags = ("--num-envs", "4", "--vectorization", "sync")
    flags += ("--workers", "1") if program == "a3c" else a2c_flags
    whole, parts = start(program, *flags), start(program, *flags)
    parts.until(parts.trains, 60)
    os.killpg(parts.process.pid, signal.SIGINT)
    assert parts.end()[0] == 130
    assert 0 < end_of(parts.folder).counters.steps < 60_000
    module = {"a2c": a2c, "a3c": a3c}[program]
    module.train(module.Config(resume=str(parts.folder), quiet=True))
    assert whole.end()[0] == 0
    assert_same_end(end_of(whole.folder), end_of(parts.folder))


def test_another_seed_or_number_of_environments_begins_new_episodes(tmp_path, capsys) -> None:
    settings = {**PLAIN, **A2C, "total_timesteps": 400}
    for number, other in enumerate([{"seed": 6}, {"num_envs": 8}]):
        run = tmp_path / str(number)
        a2c.train(a2c.Config(run_dir=str(run), **settings))
        config = a2c.Config(resume=str(run), total_timesteps=900, quiet=False, **other)
        assert (resume.state_to_resume(end_of(run), config) is None) == ("seed" in other)
        a2c.train(config)
        printed = capsys.readouterr().out
        assert ("holds another number of environments" in printed) == ("num_envs" in other)
        assert end_of(run).counters.steps >= 900
        assert len(end_of(run).worker_state["carried"]["returns"]) == config.num_envs


def test_a_run_that_goes_on_on_another_device_says_that_episodes_begin_anew(tmp_path, capsys):
    """The random stream of a GPU is 16 bytes, and that of the CPU 5,056."""
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
    assert end_of(run).counters.steps >= 900


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Box2D's own
def test_environments_outside_python_are_named_and_begun_anew(tmp_path, capsys) -> None:
    pytest.importorskip("Box2D")
    settings = {"env": "LunarLander-v3", "num_envs": 2, "vectorization": "sync", "n_steps": 8}
    run = tmp_path / "run"
    a2c.train(a2c.Config(run_dir=str(run), total_timesteps=64, **settings))
    capsys.readouterr()
    a2c.train(a2c.Config(resume=str(run), total_timesteps=128))
    printed = capsys.readouterr().out
    assert "episodes restart: " in printed
    assert "Swig" in printed


def test_many_workers_go_on_with_counts_and_statistics(tmp_path) -> None:
    settings = {"workers": 2, "envs_per_worker": 4, "normalize_observations": True, "quiet": True}
    run = tmp_path / "run"
    a3c.train(a3c.Config(run_dir=str(run), total_timesteps=2_000, **settings))
    before = end_of(run)
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
