"""Tests of PPO runs: both modes, signals and restarts."""

import os
import signal
from typing import Any

import pytest
import torch

import hogwild_rl
from hogwild_rl import ppo

SETTINGS: dict[str, dict[str, Any]] = {
    "vectors": {"env": "CartPole-v1", "total_timesteps": 8_000},
    "continuous": {"env": "Pendulum-v1", "total_timesteps": 8_000, "clip_value_range": 0.2},
    "LSTM": {"env": "CartPole-v1", "total_timesteps": 3_000, "lstm": 16},
    "rmsprop": {"env": "Acrobot-v1", "total_timesteps": 3_000, "optimizer": "rmsprop"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_one_worker_equals_one_process_bit_for_bit(name: str, tmp_path) -> None:
    found = []
    for workers in (0, 1):
        folder = tmp_path / str(workers)
        settings = {**SETTINGS[name], "workers": workers, "vectorization": "sync", "seed": 3}
        ppo.train(ppo.Config(**settings, quiet=True, run_dir=str(folder)))
        found.append(hogwild_rl.load(folder).checkpoint)
    one_process, one_worker = found
    assert one_process.counters.updates == one_worker.counters.updates > 40
    assert one_process.counters.recent_returns == one_worker.counters.recent_returns
    for part, parameter in one_process.parameters.items():
        assert torch.equal(one_worker.parameters[part], parameter), part


def test_two_workers_learn_and_measure_staleness(start) -> None:
    flags = ("--workers", "2", "--normalize-rewards", "--learning-rate", "1e-3")
    run = start("ppo", *flags, "--env", "CartPole-v1", "--total-timesteps", "60000")
    code, _, err = run.wait()
    assert code == 0, err
    agent = hogwild_rl.load(run.folder)
    assert agent.checkpoint.counters.steps >= 60_000
    assert agent.evaluate(10, seed=1).mean() > 150
    stale = [line.split(",") for line in (run.folder / "staleness.csv").read_text().splitlines()]
    assert sum(int(count) for staleness, count in stale[1:] if int(staleness) > 0) > 0


def test_ctrl_c_saves_a_checkpoint_and_a_killed_worker_is_restarted(start) -> None:
    run = start("ppo", "--workers", "2", "--total-timesteps", "1000000000")
    run.wait_until(run.training, 60)
    run.kill_youngest()
    os.killpg(run.process.pid, signal.SIGINT)
    code, out, err = run.wait()
    assert code == 130, err
    assert err.count("was killed by SIGKILL") == 1
    assert f"--resume {run.folder}" in out
    assert hogwild_rl.load(run.folder).checkpoint.counters.steps > 0
