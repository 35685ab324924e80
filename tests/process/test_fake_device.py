"""Tests of A2C, PPO, DDPG and TD3 on a fake device, which raises if an operation mixes devices."""

import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from torch.utils import backend_registration

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this version of torch cannot register a device in Python",
)

ROOT = pathlib.Path(__file__).parents[2]
A2C = {"num_envs": 4, "total_timesteps": 300}
PPO = {"num_envs": 4, "n_steps": 16, "batch_size": 16, "total_timesteps": 300}
REPLAY = {"total_timesteps": 150, "learning_starts": 100, "batch_size": 16, "buffer_size": 1_000}
# By name: algorithm, settings and number of graphs captured with `compile`.
RUNS: dict[str, tuple[str, dict[str, Any], int]] = {
    "vectors": ("a2c", {**A2C, "env": "CartPole-v1"}, 3),
    "two groups, LSTM, normalizers": (
        "a2c",
        {
            **A2C,
            "env": "CartPole-v1",
            "env_groups": 2,
            "lstm": 8,
            "normalize_observations": True,
            "normalize_rewards": True,
        },
        3,
    ),
    "continuous": ("a2c", {**A2C, "env": "Pendulum-v1", "state_dependent_std": True}, 3),
    "small images": ("a2c", {**A2C, "env": "tests.envs:Images-v0"}, 3),
    "atari": (
        "a2c",
        {**A2C, "env": "PongNoFrameskip-v4", "total_timesteps": 60, "n_steps": 5},
        3,
    ),
    "non-finite rewards": ("a2c", {**A2C, "env": "tests.envs:FaultyNan-v0"}, 3),
    "ppo": ("ppo", {**PPO, "env": "CartPole-v1", "normalize_observations": True}, 3),
    "ppo, continuous, LSTM": (
        "ppo",
        {**PPO, "env": "Pendulum-v1", "lstm": 8, "target_kl": 10.0, "clip_value_range": 0.2},
        3,
    ),
    "ppo, images, sgd": ("ppo", {**PPO, "env": "tests.envs:Images-v0", "optimizer": "sgd"}, 3),
    "ddpg": ("ddpg", REPLAY, 1),
    "td3": ("td3", REPLAY, 2),
}


def train(algorithm: str, settings: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "tests.fake_device", algorithm, json.dumps(settings))
    return subprocess.run(
        command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=100
    )


QUICK = ("vectors", "two groups, LSTM, normalizers", "atari", "ppo", "td3")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.long) for n in RUNS]
)
def test_training_mixes_no_devices_and_captures_the_expected_graphs(name) -> None:
    """Each function runs once without capture first, so this also covers `compile=False`."""
    algorithm, settings, graphs = RUNS[name]
    result = train(algorithm, {**settings, "compile": True})
    assert result.returncode == 0, result.stderr[-3000:]
    steps, updates, captured = json.loads(result.stdout)
    assert steps >= settings["total_timesteps"]
    assert updates > 0
    assert captured == graphs


@pytest.mark.long
@pytest.mark.parametrize(
    ("network", "operation"), [("reading", "item"), ("masking", "__getitem__")]
)
def test_error_names_a_network_that_cannot_be_captured(network, operation) -> None:
    settings = {**A2C, "env": "CartPole-v1", "network": network}
    result = train("a2c", {**settings, "compile": True})
    assert result.returncode == 1
    assert f"UserError: network tests.fake_device.{network.title()} cannot be" in (
        result.stderr.replace("__main__", "tests.fake_device")
    )
    assert operation in result.stderr
    assert "set compile to False" in result.stderr
    assert train("a2c", {**settings, "compile": False}).returncode == 0
